// Device-independent part of centerness; see math/centerness.h.
#pragma once

#include "device_of.h"
#include "math/centerness.h"

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

template <class Device>
Tensor centerness_or_grad(const Tensor& ltrb, const Tensor* grad) {
  check_centerness(ltrb, grad);
  DeviceOf<Device> device(ltrb);
  const ScalarType dtype = ltrb.scalar_type();
  const Tensor rows = device.aligned(torch::stable::contiguous(ltrb));
  std::vector<int64_t> sizes = sizes_of(rows);
  if (grad == nullptr) sizes.pop_back();
  Tensor out = new_empty(rows, sizes, dtype);
  if (rows.numel() == 0) return out;
  Tensor upstream;
  if (grad != nullptr) upstream = torch::stable::contiguous(converted(*grad, dtype));
  run_centerness(
      *device, {dtype_of(rows), rows.const_data_ptr(), grad == nullptr ? nullptr : upstream.const_data_ptr(),
                rows.numel() / 4, out.mutable_data_ptr()});
  return out;
}

template <class Device>
Tensor centerness(const Tensor& ltrb) {
  return centerness_or_grad<Device>(ltrb, nullptr);
}
template <class Device>
Tensor centerness_backward(const Tensor& grad, const Tensor& ltrb) {
  return centerness_or_grad<Device>(ltrb, &grad);
}

}  // namespace fcos_fast
