// The parts of torch's stable ABI that every operator needs.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <tuple>
#include <utility>
#include <vector>

#include "dtype.h"

namespace fcos_fast {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::vector<int64_t> sizes_of(const Tensor& t) {
  const auto sizes = t.sizes();
  return std::vector<int64_t>(sizes.begin(), sizes.end());
}

inline std::vector<int64_t> strides_of(const Tensor& t) {
  const auto strides = t.strides();
  return std::vector<int64_t>(strides.begin(), strides.end());
}

// An uninitialized, contiguous tensor on the device of `like`.
inline Tensor new_empty(const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype) {
  return torch::stable::new_empty(like, sizes, dtype);
}

inline Tensor converted(const Tensor& t, ScalarType dtype) {
  return t.scalar_type() == dtype ? t : torch::stable::to(t, dtype);
}

// For a dtype that has passed check_floating().
inline Dtype dtype_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::BFloat16:
      return Dtype::kBFloat16;
    case ScalarType::Half:
      return Dtype::kFloat16;
    case ScalarType::Double:
      return Dtype::kFloat64;
    default:
      return Dtype::kFloat32;
  }
}

inline Dtype dtype_of(const Tensor& t) { return dtype_of(t.scalar_type()); }

template <class T>
const T* const_data(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <class T>
T* mutable_data(Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}

inline bool is_floating_point(ScalarType t) {
  return t == ScalarType::Float || t == ScalarType::Double || t == ScalarType::BFloat16 ||
         t == ScalarType::Half;
}

// The output requested from a loss operator.
enum class Result { kElements, kSum, kGrad };

// Sums of 16-bit losses are float32, those of float64 losses float64.
inline ScalarType sum_type(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// The incoming gradient of a loss: one number per element, or a scalar (the gradient of the sum), which is read on the
// device.
struct Upstream {
  Tensor tensor;
  const void* scale = nullptr;  // of sum_type(dtype)
  const void* elements = nullptr;
};

// Both pointers are null without a gradient. `arrange` converts elements to the memory format of the loss.
template <class Arrange>
Upstream upstream_of(const Tensor* grad, ScalarType dtype, const Arrange& arrange) {
  Upstream upstream;
  if (grad == nullptr) return upstream;
  if (grad->dim() == 0) {
    upstream.tensor = converted(*grad, sum_type(dtype));
    upstream.scale = upstream.tensor.const_data_ptr();
  } else {
    upstream.tensor = arrange(converted(*grad, dtype));
    upstream.elements = upstream.tensor.const_data_ptr();
  }
  return upstream;
}

}  // namespace fcos_fast
