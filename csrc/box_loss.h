// Device-independent part of box_loss; see math/box_loss.h.
#pragma once

#include "device_of.h"
#include "math/box_loss.h"

namespace fcos_fast {

inline BoxLossParameters box_loss_parameters(const std::string& kind, bool ltrb, double smooth, double eps) {
  const char* op = "box_loss";
  check_number(op, "smooth", smooth, 0, INFINITY);
  check_number(op, "eps", eps, 0, INFINITY);
  return {read_choice<math::BoxLossKind>(op, "kind", kind, math::kBoxLossKinds), ltrb, smooth, eps};
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

template <class Device>
Tensor box_loss_result(const Tensor& pred, const Tensor& target, const BoxLossParameters& parameters,
                       Result want, const Tensor* grad = nullptr) {
  check_box_pairs(pred, target, grad);
  DeviceOf<Device> device(pred);
  const ScalarType dtype = pred.scalar_type();
  const auto rows = [&](const Tensor& t) { return device.aligned(torch::stable::contiguous(t)); };
  const Tensor p = rows(pred), t = rows(converted(target, dtype));
  std::vector<int64_t> sizes = sizes_of(p);
  if (want == Result::kElements) sizes.pop_back();
  if (want == Result::kSum) sizes.clear();
  Tensor out = new_empty(p, sizes, want == Result::kGrad ? dtype : sum_type(dtype));
  if (out.numel() == 0) return out;
  const auto contiguous = [](const Tensor& g) { return torch::stable::contiguous(g); };
  const Upstream upstream = upstream_of(grad, sum_type(dtype), contiguous);

  BoxLossWork work{dtype_of(p),   p.const_data_ptr(), t.const_data_ptr(),
                   p.numel() / 4, upstream.scale,     upstream.elements};
  (want == Result::kElements ? work.loss
   : want == Result::kSum    ? work.sum
                             : work.grad) = out.mutable_data_ptr();
  run_box_loss(*device, parameters, work);
  return out;
}

template <class Device>
Tensor box_loss(const Tensor& pred, const Tensor& target, std::string kind, bool ltrb, double smooth,
                double eps) {
  return box_loss_result<Device>(pred, target, box_loss_parameters(kind, ltrb, smooth, eps),
                                 Result::kElements);
}
template <class Device>
Tensor box_loss_sum(const Tensor& pred, const Tensor& target, std::string kind, bool ltrb, double smooth,
                    double eps) {
  return box_loss_result<Device>(pred, target, box_loss_parameters(kind, ltrb, smooth, eps), Result::kSum);
}
template <class Device>
Tensor box_loss_backward(const Tensor& grad, const Tensor& pred, const Tensor& target, std::string kind,
                         bool ltrb, double smooth, double eps) {
  return box_loss_result<Device>(pred, target, box_loss_parameters(kind, ltrb, smooth, eps), Result::kGrad,
                                 &grad);
}

}  // namespace fcos_fast
