// One element of a tensor whatever its floating-point type, for where too few are touched to compile a kernel for each.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>

#include "host_device.h"

namespace fcos_fast::math {

template <class Real>
FCOS_HOST_DEVICE Real read_element(const void* data, torch::headeronly::ScalarType dtype, int64_t i) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Float:
      return Real(static_cast<const float*>(data)[i]);
    case ScalarType::BFloat16:
      return Real(float(static_cast<const torch::headeronly::BFloat16*>(data)[i]));
    case ScalarType::Half:
      return Real(float(static_cast<const torch::headeronly::Half*>(data)[i]));
    default:
      return Real(static_cast<const double*>(data)[i]);
  }
}

template <class Real>
FCOS_HOST_DEVICE void write_element(void* data, torch::headeronly::ScalarType dtype, int64_t i, Real value) {
  using torch::headeronly::ScalarType;
  switch (dtype) {
    case ScalarType::Float:
      static_cast<float*>(data)[i] = float(value);
      break;
    case ScalarType::BFloat16:
      static_cast<torch::headeronly::BFloat16*>(data)[i] = torch::headeronly::BFloat16(float(value));
      break;
    case ScalarType::Half:
      static_cast<torch::headeronly::Half*>(data)[i] = torch::headeronly::Half(float(value));
      break;
    default:
      static_cast<double*>(data)[i] = double(value);
  }
}

}  // namespace fcos_fast::math
