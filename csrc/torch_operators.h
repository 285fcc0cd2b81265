// Torch operators that the stable headers offer only since 2.14, called by name to support 2.10.
#pragma once

#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/stableivalue_conversions.h>
#include <torch/headeronly/util/shim_utils.h>

#include <array>

#include "tensor.h"

namespace fcos_fast {

// The outputs replace the arguments on the stack; `name` is "aten::...".
template <class... Args>
std::array<StableIValue, sizeof...(Args)> call_torch(const char* name, const char* overload,
                                                     const Args&... args) {
  std::array<StableIValue, sizeof...(Args)> stack{torch::stable::detail::from(args)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  return stack;
}

// Stable argsort of a vector in descending order; NaN comes first.
inline Tensor argsort_descending(const Tensor& t) {
  const auto sorted = call_torch("aten::sort", "stable", t, std::optional<bool>(true), int64_t(0), true);
  torch::stable::detail::to<Tensor>(sorted[0]);  // takes ownership of the values, to free them
  return torch::stable::detail::to<Tensor>(sorted[1]);
}

// Stable ascending sort of a vector: values and indices.
inline std::tuple<Tensor, Tensor> sort_ascending(const Tensor& t) {
  const auto sorted = call_torch("aten::sort", "stable", t, std::optional<bool>(true), int64_t(0), false);
  return {torch::stable::detail::to<Tensor>(sorted[0]), torch::stable::detail::to<Tensor>(sorted[1])};
}

// Indices of the true elements of a vector. Synchronizes.
inline Tensor nonzero(const Tensor& t) {
  const Tensor indices = torch::stable::detail::to<Tensor>(call_torch("aten::nonzero", "", t)[0]);  // (N, 1)
  return torch::stable::detail::to<Tensor>(
      call_torch("aten::flatten", "using_ints", indices, int64_t(0), int64_t(1))[0]);
}

// t[index].
inline Tensor index_select(const Tensor& t, const Tensor& index) {
  return torch::stable::detail::to<Tensor>(call_torch("aten::index_select", "", t, int64_t(0), index)[0]);
}

}  // namespace fcos_fast
