// Checks the arguments of centerness.
#pragma once

#include "checks.h"

namespace fcos_fast {

inline void check_centerness(const Tensor& ltrb, const Tensor* grad) {
  const char* op = "centerness";
  check_same_device(op, ltrb, grad);
  check_floating(op, "ltrb", ltrb);
  if (grad != nullptr) check_floating(op, "grad", *grad);
  STD_TORCH_CHECK(ltrb.dim() >= 1 && ltrb.size(ltrb.dim() - 1) == 4 &&
                      (grad == nullptr || grad->numel() == ltrb.numel() / 4),
                  "fcos_fast::centerness: expected ltrb (..., 4), and a gradient of one number per row");
}

}  // namespace fcos_fast
