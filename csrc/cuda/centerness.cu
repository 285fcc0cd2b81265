// One location per thread.
#include "../centerness_arguments.h"
#include "../math/centerness.h"
#include "launch.h"

namespace fcos_fast {
namespace {

template <class T>
__global__ void __launch_bounds__(kThreads) centerness_kernel(const T* ltrb, int64_t n, T* out) {
  using C = compute_t<T>;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n; i += int64_t(gridDim.x) * kThreads) {
    const C d[4] = {C(ltrb[4 * i]), C(ltrb[4 * i + 1]), C(ltrb[4 * i + 2]), C(ltrb[4 * i + 3])};
    out[i] = T(math::centerness(d));
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    centerness_grad_kernel(const T* ltrb, const T* upstream, int64_t n, T* out) {
  using C = compute_t<T>;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < n; i += int64_t(gridDim.x) * kThreads) {
    const C d[4] = {C(ltrb[4 * i]), C(ltrb[4 * i + 1]), C(ltrb[4 * i + 2]), C(ltrb[4 * i + 3])};
    C grad[4];
    math::centerness_grad(d, C(upstream[i]), grad);
#pragma unroll
    for (int side = 0; side < 4; ++side) out[4 * i + side] = T(grad[side]);
  }
}

Tensor run(const Tensor& ltrb, const Tensor* grad) {
  check_centerness(ltrb, grad);
  const OnDeviceOf device(ltrb);
  const ScalarType dtype = ltrb.scalar_type();
  const Tensor rows = torch::stable::contiguous(ltrb);
  const int64_t n = rows.numel() / 4;
  std::vector<int64_t> sizes = sizes_of(rows);
  if (grad == nullptr) sizes.pop_back();
  Tensor out = new_empty(rows, sizes, dtype);
  if (n == 0) return out;
  Tensor upstream;
  if (grad != nullptr) upstream = torch::stable::contiguous(converted(*grad, dtype));
  dispatch_floating("centerness", dtype, [&](auto element) {
    using T = decltype(element);
    const T* in = static_cast<const T*>(rows.const_data_ptr());
    T* result = static_cast<T*>(out.mutable_data_ptr());
    if (grad == nullptr) {
      centerness_kernel<<<blocks_for(n), kThreads, 0, device.stream()>>>(in, n, result);
    } else {
      centerness_grad_kernel<<<blocks_for(n), kThreads, 0, device.stream()>>>(
          in, static_cast<const T*>(upstream.const_data_ptr()), n, result);
    }
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return out;
}

Tensor centerness(const Tensor& ltrb) { return run(ltrb, nullptr); }
Tensor centerness_backward(const Tensor& grad, const Tensor& ltrb) { return run(ltrb, &grad); }

}  // namespace
}  // namespace fcos_fast

STABLE_TORCH_LIBRARY_IMPL(fcos_fast, CUDA, m) {
  using namespace fcos_fast;
  m.impl("centerness", TORCH_BOX(&centerness));
  m.impl("centerness_backward", TORCH_BOX(&centerness_backward));
}
