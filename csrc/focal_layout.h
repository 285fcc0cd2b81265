// How the logits of a focal loss with class targets lie in memory.
#pragma once

#include "checks.h"
#include "math/focal_loss.h"

namespace fcos_fast {

// Memory is dense [outer][classes][inner]; location o * inner + i has its label at that place of the
// flattened labels. inner is 1 for (..., C) and channels-last tensors, H * W for a permuted (B, C, H, W).
struct FocalLayout {
  int64_t outer, classes, inner;
};

inline std::optional<FocalLayout> find_focal_layout(const Tensor& inputs) {
  const int64_t last = inputs.dim() - 1;
  const int64_t classes = inputs.size(last);
  const int64_t locations = classes == 0 ? 0 : inputs.numel() / classes;
  if (inputs.is_contiguous() || inputs.numel() == 0) return FocalLayout{locations, classes, 1};

  const int64_t inner = classes == 1 ? 1 : inputs.stride(last);
  int64_t expected = 1;
  for (int64_t d = last - 1; d >= 0; --d) {
    if (inputs.size(d) == 1) continue;
    if (expected == inner) expected *= classes;  // the classes lie between the inner and the outer dimensions
    if (inputs.stride(d) != expected) return std::nullopt;
    expected *= inputs.size(d);
  }
  const bool complete = expected == inner || expected == inputs.numel();
  if (!complete) return std::nullopt;
  return FocalLayout{locations / inner, classes, inner};
}

inline FocalParameters focal(double alpha, double gamma) {
  check_number("sigmoid_focal_loss", "alpha", alpha, -INFINITY, 1);
  check_number("sigmoid_focal_loss", "gamma", gamma, 0, std::numeric_limits<double>::max());
  return {false, alpha, gamma, 0};
}
inline FocalParameters focal_star(double gamma, double beta) {
  constexpr double most = std::numeric_limits<double>::max();
  check_number("sigmoid_focal_loss_star", "gamma", gamma, std::numeric_limits<double>::min(), most);
  check_number("sigmoid_focal_loss_star", "beta", beta, -most, most);
  return {true, -1, gamma, beta};
}

inline void check_focal(const Tensor& inputs, const Tensor& targets, const Tensor* grad) {
  const char* op = "sigmoid_focal_loss";
  check_same_device(op, inputs, targets, grad);
  check_floating(op, "inputs", inputs);
  if (!is_floating_point(targets.scalar_type())) {
    check_integer(op, "targets", targets);
    STD_TORCH_CHECK(inputs.dim() > 0, "fcos_fast::sigmoid_focal_loss: class targets need inputs (..., C)");
  }
  if (grad != nullptr) check_floating(op, "grad", *grad);
  std::vector<int64_t> sizes = sizes_of(inputs);
  STD_TORCH_CHECK(grad == nullptr || grad->dim() == 0 || sizes_of(*grad) == sizes,
                  "fcos_fast::sigmoid_focal_loss: grad must be a scalar or have the shape of inputs");
  if (!is_floating_point(targets.scalar_type()) && !sizes.empty()) sizes.pop_back();
  STD_TORCH_CHECK(sizes_of(targets) == sizes,
                  "fcos_fast::sigmoid_focal_loss: targets must have the shape of inputs, or without its last "
                  "dimension if they are classes");
}

}  // namespace fcos_fast
