// One pair of boxes per thread.
#include "../box_loss_arguments.h"
#include "launch.h"

namespace fcos_fast {
namespace {

using math::BoxLossKind;

template <class T>
struct Arguments {
  const T* pred;
  const T* target;
  int64_t n;
  bool ltrb;
  compute_t<T> smooth, eps;
  const compute_t<T>* scale;
  const compute_t<T>* upstream;
  compute_t<T>* loss;
  T* grad;
  double* partial;
};

template <class C, class T>
__device__ __forceinline__ void read_box(const T* row, bool ltrb, C box[4]) {
#pragma unroll
  for (int c = 0; c < 4; ++c) box[c] = C(row[c]);
  if (ltrb) {
    box[0] = -box[0];
    box[1] = -box[1];
  }
}

template <class T, BoxLossKind Kind, Result Want>
__global__ void __launch_bounds__(kThreads) box_loss_kernel(Arguments<T> a) {
  using C = compute_t<T>;
  const C scale = Want == Result::kGrad && a.scale != nullptr ? *a.scale : C(1);
  double total = 0;
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < a.n;
       i += int64_t(gridDim.x) * kThreads) {
    C p[4], t[4];
    read_box(a.pred + 4 * i, a.ltrb, p);
    read_box(a.target + 4 * i, a.ltrb, t);
    const math::BoxPair<C, Kind> pair(p, t, a.smooth, a.eps);
    if constexpr (Want == Result::kSum) total += double(pair.loss());
    if constexpr (Want == Result::kElements) a.loss[i] = pair.loss();
    if constexpr (Want == Result::kGrad) {
      C grad[4];
      pair.grad(a.upstream != nullptr ? a.upstream[i] : scale, grad);
      if (a.ltrb) {
        grad[0] = -grad[0];
        grad[1] = -grad[1];
      }
#pragma unroll
      for (int c = 0; c < 4; ++c) a.grad[4 * i + c] = T(grad[c]);
    }
  }
  if constexpr (Want == Result::kSum) {
    total = block_sum(total);
    if (threadIdx.x == 0) a.partial[blockIdx.x] = total;
  }
}

template <class T, BoxLossKind Kind>
void launch(Result want, const Arguments<T>& a, int blocks, cudaStream_t stream) {
  switch (want) {
    case Result::kElements:
      box_loss_kernel<T, Kind, Result::kElements><<<blocks, kThreads, 0, stream>>>(a);
      break;
    case Result::kSum:
      box_loss_kernel<T, Kind, Result::kSum><<<blocks, kThreads, 0, stream>>>(a);
      break;
    case Result::kGrad:
      box_loss_kernel<T, Kind, Result::kGrad><<<blocks, kThreads, 0, stream>>>(a);
      break;
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

template <class T>
void launch_kind(BoxLossKind kind, Result want, const Arguments<T>& a, int blocks, cudaStream_t stream) {
  switch (kind) {
    case BoxLossKind::kIou:
      return launch<T, BoxLossKind::kIou>(want, a, blocks, stream);
    case BoxLossKind::kLinearIou:
      return launch<T, BoxLossKind::kLinearIou>(want, a, blocks, stream);
    case BoxLossKind::kGiou:
      return launch<T, BoxLossKind::kGiou>(want, a, blocks, stream);
    case BoxLossKind::kDiou:
      return launch<T, BoxLossKind::kDiou>(want, a, blocks, stream);
    case BoxLossKind::kCiou:
      return launch<T, BoxLossKind::kCiou>(want, a, blocks, stream);
  }
}

Tensor run(const Tensor& pred, const Tensor& target, const BoxLossParameters& parameters, Result want,
           const Tensor* grad) {
  check_box_pairs(pred, target, grad);
  const OnDeviceOf device(pred);
  const ScalarType dtype = pred.scalar_type();
  const Tensor p = torch::stable::contiguous(pred);
  const Tensor t = torch::stable::contiguous(converted(target, dtype));
  const int64_t pairs = p.numel() / 4;
  std::vector<int64_t> sizes = sizes_of(p);
  if (want == Result::kElements) sizes.pop_back();
  if (want == Result::kSum) sizes.clear();
  Tensor out = new_empty(p, sizes, want == Result::kGrad ? dtype : sum_type(dtype));
  if (pairs == 0 && want != Result::kSum) return out;
  Upstream upstream;
  if (grad != nullptr) {
    upstream =
        upstream_of(*grad, sum_type(dtype), [](const Tensor& g) { return torch::stable::contiguous(g); });
  }
  const int blocks = std::max(1, blocks_for(pairs));
  Tensor partial;
  if (want == Result::kSum) partial = new_empty(p, {blocks}, ScalarType::Double);

  dispatch_floating("box_loss", dtype, [&](auto element) {
    using T = decltype(element);
    using C = compute_t<T>;
    Arguments<T> a{};
    a.pred = static_cast<const T*>(p.const_data_ptr());
    a.target = static_cast<const T*>(t.const_data_ptr());
    a.n = pairs;
    a.ltrb = parameters.ltrb;
    a.smooth = C(parameters.smooth);
    a.eps = C(parameters.eps);
    a.scale = static_cast<const C*>(upstream.scale);
    a.upstream = static_cast<const C*>(upstream.elements);
    if (want == Result::kSum) a.partial = static_cast<double*>(partial.mutable_data_ptr());
    if (want == Result::kElements) a.loss = static_cast<C*>(out.mutable_data_ptr());
    if (want == Result::kGrad) a.grad = static_cast<T*>(out.mutable_data_ptr());
    launch_kind(parameters.kind, want, a, blocks, device.stream());
    if (want == Result::kSum) {
      add_partial_sums<<<1, kThreads, 0, device.stream()>>>(a.partial, blocks, 1,
                                                            static_cast<C*>(out.mutable_data_ptr()));
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
  });
  return out;
}

Tensor box_loss(const Tensor& pred, const Tensor& target, int64_t kind, bool ltrb, double smooth,
                double eps) {
  return run(pred, target, box_loss_parameters(kind, ltrb, smooth, eps), Result::kElements, nullptr);
}
Tensor box_loss_sum(const Tensor& pred, const Tensor& target, int64_t kind, bool ltrb, double smooth,
                    double eps) {
  return run(pred, target, box_loss_parameters(kind, ltrb, smooth, eps), Result::kSum, nullptr);
}
Tensor box_loss_backward(const Tensor& grad, const Tensor& pred, const Tensor& target, int64_t kind,
                         bool ltrb, double smooth, double eps) {
  return run(pred, target, box_loss_parameters(kind, ltrb, smooth, eps), Result::kGrad, &grad);
}

}  // namespace
}  // namespace fcos_fast

STABLE_TORCH_LIBRARY_IMPL(fcos_fast, CUDA, m) {
  using namespace fcos_fast;
  m.impl("box_loss", TORCH_BOX(&box_loss));
  m.impl("box_loss_sum", TORCH_BOX(&box_loss_sum));
  m.impl("box_loss_backward", TORCH_BOX(&box_loss_backward));
}
