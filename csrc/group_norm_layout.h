// How the input of group_norm_relu lies in memory.
#pragma once

#include "checks.h"
#include "memory_format.h"

namespace fcos_fast {

struct GroupNormLayout {
  int64_t batch, channels, spatial, groups;
  bool channels_last;  // memory is [batch][spatial][channels], not [batch][channels][spatial]

  int64_t group_channels() const { return channels / groups; }
  int64_t group_size() const { return group_channels() * spatial; }
};

// [batch][spatial][channels], without gaps?
inline bool lies_channels_last(const Tensor& x) {
  int64_t expected = x.size(1);
  for (int64_t k = 1; k < x.dim(); ++k) {
    const int64_t d = k == x.dim() - 1 ? 0 : x.dim() - k;  // the last axis, ..., the third, the first
    if (x.size(d) != 1 && x.stride(d) != expected) return false;
    expected *= x.size(d);
  }
  return x.size(1) == 1 || x.stride(1) == 1;
}

inline void check_group_norm(const Tensor& x, const std::optional<Tensor>& weight,
                             const std::optional<Tensor>& bias, int64_t groups) {
  STD_TORCH_CHECK(x.dim() >= 2 && is_floating_point(x.scalar_type()) && groups > 0 && x.size(1) % groups == 0,
                  "fcos_fast::group_norm_relu: expected floating-point x (B, C, ...) with C a multiple of ",
                  groups, " groups");
  check_same_device("group_norm_relu", x, weight, bias);
  for (const auto* t : {&weight, &bias}) {
    if (t->has_value()) check_floating("group_norm_relu", "weight or bias", **t);
    STD_TORCH_CHECK(!t->has_value() || ((*t)->dim() == 1 && (*t)->size(0) == x.size(1)),
                    "fcos_fast::group_norm_relu: weight and bias must have one number per channel");
  }
}

inline void check_group_norm_grad(const Tensor& grad, const Tensor& x, const Tensor& mean, const Tensor& rstd,
                                  const std::optional<Tensor>& weight, const std::optional<Tensor>& bias) {
  const char* op = "group_norm_relu_backward";
  check_same_device(op, x, grad, mean, rstd);
  check_floating(op, "grad", grad);
  check_floating(op, "mean", mean);
  check_floating(op, "rstd", rstd);
  STD_TORCH_CHECK(
      mean.dim() == 2 && mean.size(0) == x.size(0) && sizes_of(rstd) == sizes_of(mean) &&
          sizes_of(grad) == sizes_of(x),
      "fcos_fast::group_norm_relu_backward: expected grad of the shape of x, mean and rstd (B, G)");
  check_group_norm(x, weight, bias, mean.size(1));
}

// `x` itself where its memory is of one of the two kinds, else a contiguous copy.
inline Tensor readable(const Tensor& x) {
  return x.is_contiguous() || lies_channels_last(x) ? x : torch::stable::contiguous(x);
}

inline GroupNormLayout group_norm_layout(const Tensor& x, int64_t groups) {
  int64_t spatial = 1;
  for (int64_t d = 2; d < x.dim(); ++d) spatial *= x.size(d);
  return {x.size(0), x.size(1), spatial, groups, x.size(1) > 1 && lies_channels_last(x)};
}

}  // namespace fcos_fast
