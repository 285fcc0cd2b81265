// Reads and checks the arguments of box_loss.
#pragma once

#include "checks.h"
#include "math/box_loss.h"

namespace fcos_fast {

inline BoxLossParameters box_loss_parameters(int64_t kind, bool ltrb, double smooth, double eps) {
  const char* op = "box_loss";
  check_range(op, "kind", kind, 0, int64_t(math::BoxLossKind::kCiou));
  check_number(op, "smooth", smooth, 0, INFINITY);
  check_number(op, "eps", eps, 0, INFINITY);
  return {math::BoxLossKind(kind), ltrb, smooth, eps};
}

inline void check_box_pairs(const Tensor& pred, const Tensor& target, const Tensor* grad) {
  const char* op = "box_loss";
  check_same_device(op, pred, target, grad);
  check_floating(op, "pred", pred);
  check_floating(op, "target", target);
  STD_TORCH_CHECK(pred.dim() >= 1 && pred.size(pred.dim() - 1) == 4 && sizes_of(pred) == sizes_of(target),
                  "fcos_fast::box_loss: pred and target must have the same shape (..., 4)");
  if (grad == nullptr) return;
  check_floating(op, "grad", *grad);
  STD_TORCH_CHECK(grad->dim() == 0 || grad->numel() == pred.numel() / 4,
                  "fcos_fast::box_loss: grad must be a scalar or have one number per pair");
}

}  // namespace fcos_fast
