// Operators of torch that its stable headers have only from 2.14 on, called by name: sources build with 2.10.
#pragma once

#include <torch/csrc/stable/c/shim.h>
#include <torch/csrc/stable/stableivalue_conversions.h>
#include <torch/headeronly/util/shim_utils.h>

#include <array>

#include "tensor.h"

namespace fcos_fast {

// What the operator returns stands where its arguments stood; `name` is "aten::...".
template <class... Args>
std::array<StableIValue, sizeof...(Args)> call_torch(const char* name, const char* overload,
                                                     const Args&... args) {
  std::array<StableIValue, sizeof...(Args)> stack{torch::stable::detail::from(args)...};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  return stack;
}

// Indices that sort the vector from its greatest to its least; equal ones stay in order, NaN comes first.
inline Tensor argsort_descending(const Tensor& t) {
  const auto sorted = call_torch("aten::sort", "stable", t, std::optional<bool>(true), int64_t(0), true);
  torch::stable::detail::to<Tensor>(sorted[0]);  // takes the values over, to free them
  return torch::stable::detail::to<Tensor>(sorted[1]);
}

// The vector from its least to its greatest, and the indices that sort it; equal ones stay in order.
inline std::tuple<Tensor, Tensor> sort_ascending(const Tensor& t) {
  const auto sorted = call_torch("aten::sort", "stable", t, std::optional<bool>(true), int64_t(0), false);
  return {torch::stable::detail::to<Tensor>(sorted[0]), torch::stable::detail::to<Tensor>(sorted[1])};
}

// Indices of the true elements of the vector. The host waits for their number.
inline Tensor nonzero(const Tensor& t) {
  const Tensor places = torch::stable::detail::to<Tensor>(call_torch("aten::nonzero", "", t)[0]);  // (N, 1)
  return torch::stable::detail::to<Tensor>(
      call_torch("aten::flatten", "using_ints", places, int64_t(0), int64_t(1))[0]);
}

// Rows `index` of `t`.
inline Tensor index_select(const Tensor& t, const Tensor& index) {
  return torch::stable::detail::to<Tensor>(call_torch("aten::index_select", "", t, int64_t(0), index)[0]);
}

}  // namespace fcos_fast
