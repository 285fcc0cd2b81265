// Reads and writes one element of a tensor of any floating-point dtype. For code that touches too few elements to be
// worth a template instantiation per dtype.
#pragma once

#include "../dtype.h"
#include "host_device.h"

namespace fcos_fast::math {

template <class Real>
FCOS_HOST_DEVICE Real read_element(const void* data, Dtype dtype, int64_t i) {
  switch (dtype) {
    case Dtype::kFloat32:
      return Real(static_cast<const float*>(data)[i]);
    case Dtype::kBFloat16:
      return Real(float(static_cast<const BFloat16*>(data)[i]));
    case Dtype::kFloat16:
      return Real(float(static_cast<const Half*>(data)[i]));
    default:
      return Real(static_cast<const double*>(data)[i]);
  }
}

template <class Real>
FCOS_HOST_DEVICE void write_element(void* data, Dtype dtype, int64_t i, Real value) {
  switch (dtype) {
    case Dtype::kFloat32:
      static_cast<float*>(data)[i] = float(value);
      break;
    case Dtype::kBFloat16:
      static_cast<BFloat16*>(data)[i] = BFloat16(float(value));
      break;
    case Dtype::kFloat16:
      static_cast<Half*>(data)[i] = Half(float(value));
      break;
    default:
      static_cast<double*>(data)[i] = double(value);
  }
}

}  // namespace fcos_fast::math
