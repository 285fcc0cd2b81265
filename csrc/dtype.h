// The element types of the operators. Defined without torch, so that kernels and launches need no torch header.
#pragma once

#if defined(__CUDACC__)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#else
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>
#endif

#include <cstdint>
#include <type_traits>

namespace fcos_fast {

#if defined(__CUDACC__)
using BFloat16 = __nv_bfloat16;
using Half = __half;
#else
using torch::headeronly::BFloat16;
using torch::headeronly::Half;
#endif

enum class Dtype : int32_t { kFloat32, kBFloat16, kFloat16, kFloat64 };

constexpr int64_t size_of(Dtype dtype) {
  return dtype == Dtype::kFloat64 ? 8 : dtype == Dtype::kFloat32 ? 4 : 2;
}

// The type of the computation: float32 for 16-bit elements.
template <class T>
using compute_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Calls f with a value of the element type, one of the three that CUDA kernels exist for.
template <class F>
void dispatch_to_float32(Dtype dtype, const F& f) {
  switch (dtype) {
    case Dtype::kBFloat16:
      return f(BFloat16());
    case Dtype::kFloat16:
      return f(Half());
    default:
      return f(float());
  }
}

template <class F>
void dispatch(Dtype dtype, const F& f) {
  if (dtype == Dtype::kFloat64) return f(double());
  dispatch_to_float32(dtype, f);
}

}  // namespace fcos_fast
