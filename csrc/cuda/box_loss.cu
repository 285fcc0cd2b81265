// Each thread processes as many pairs as fit into 16 bytes of a box tensor.
#include "../math/box_loss.h"

#include "launch.h"

namespace fcos_fast {
namespace {

using math::BoxLossKind;

template <class T>
constexpr int kPairs = sizeof(T) == 4 ? 1 : 2;

template <class T>
struct Arguments {
  const T* __restrict__ pred;    // (n, 4)
  const T* __restrict__ target;  // (n, 4)
  int64_t n;
  bool ltrb;
  float smooth, eps;
  const float* __restrict__ scale;     // incoming gradient: one number, or
  const float* __restrict__ upstream;  // (n)
  float* __restrict__ loss;            // (n)
  T* __restrict__ grad;                // (n, 4)
  double* __restrict__ partial;        // sums per block
};

template <int N, class T>
__device__ __forceinline__ void read_box(const Pack<T, N>& boxes, int i, bool ltrb, float box[4]) {
#pragma unroll
  for (int side = 0; side < 4; ++side) box[side] = float(boxes.v[4 * i + side]);
  if (ltrb) {
    box[0] = -box[0];
    box[1] = -box[1];
  }
}

enum class Want { kElements, kSum, kGrad };

template <class T, BoxLossKind Kind, Want Wanted>
__global__ void __launch_bounds__(kThreads) box_loss_kernel(Arguments<T> a) {
  constexpr int N = kPairs<T>;
  const float scale = Wanted == Want::kGrad && a.scale != nullptr ? *a.scale : 1.0f;
  const int64_t stride = int64_t(gridDim.x) * kThreads * N;
  float total = 0;  // over the thread's few pairs
  for (int64_t first = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * N; first < a.n; first += stride) {
    const int pairs = int(min(int64_t(N), a.n - first));
    const auto preds = load_pack<4 * N>(a.pred + 4 * first, 4 * pairs);
    const auto targets = load_pack<4 * N>(a.target + 4 * first, 4 * pairs);
    Pack<T, 4 * N> grads;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      float p[4], t[4];
      read_box(preds, i, a.ltrb, p);
      read_box(targets, i, a.ltrb, t);
      const math::BoxPair<float, Kind> pair(p, t, a.smooth, a.eps);
      if constexpr (Wanted == Want::kGrad) {
        float grad[4];
        pair.grad(a.upstream != nullptr && i < pairs ? a.upstream[first + i] : scale, grad);
#pragma unroll
        for (int side = 0; side < 4; ++side)
          grads.v[4 * i + side] = T(a.ltrb && side < 2 ? -grad[side] : grad[side]);
      } else if (i < pairs) {
        if constexpr (Wanted == Want::kElements) a.loss[first + i] = pair.loss();
        if constexpr (Wanted == Want::kSum) total += pair.loss();
      }
    }
    if constexpr (Wanted == Want::kGrad) store_pack(a.grad + 4 * first, grads, 4 * pairs);
  }
  if constexpr (Wanted == Want::kSum) {
    const double of_block = block_sum(double(total));
    if (threadIdx.x == 0) a.partial[blockIdx.x] = of_block;
  }
}

template <class T, BoxLossKind Kind>
void launch(const Arguments<T>& a, int blocks, cudaStream_t stream) {
  const auto kernel = a.loss != nullptr   ? &box_loss_kernel<T, Kind, Want::kElements>
                      : a.grad != nullptr ? &box_loss_kernel<T, Kind, Want::kGrad>
                                          : &box_loss_kernel<T, Kind, Want::kSum>;
  kernel<<<blocks, kThreads, 0, stream>>>(a);
  check_launch();
}

template <class T>
void launch_kind(BoxLossKind kind, const Arguments<T>& a, int blocks, cudaStream_t stream) {
  switch (kind) {
    case BoxLossKind::kIou:
      return launch<T, BoxLossKind::kIou>(a, blocks, stream);
    case BoxLossKind::kLinearIou:
      return launch<T, BoxLossKind::kLinearIou>(a, blocks, stream);
    case BoxLossKind::kGiou:
      return launch<T, BoxLossKind::kGiou>(a, blocks, stream);
    case BoxLossKind::kDiou:
      return launch<T, BoxLossKind::kDiou>(a, blocks, stream);
    case BoxLossKind::kCiou:
      return launch<T, BoxLossKind::kCiou>(a, blocks, stream);
  }
}

}  // namespace

void run_box_loss(Cuda device, const BoxLossParameters& parameters, const BoxLossWork& work) {
  dispatch_to_float32(work.dtype, [&](auto element) {
    using T = decltype(element);
    const int blocks = std::max(1, blocks_for((work.n + kPairs<T> - 1) / kPairs<T>));
    const Arguments<T> a{static_cast<const T*>(work.pred),
                         static_cast<const T*>(work.target),
                         work.n,
                         parameters.ltrb,
                         float(parameters.smooth),
                         float(parameters.eps),
                         static_cast<const float*>(work.scale),
                         static_cast<const float*>(work.upstream),
                         static_cast<float*>(work.loss),
                         static_cast<T*>(work.grad),
                         work.sum == nullptr ? nullptr : device.scratch<double>(blocks)};
    launch_kind(parameters.kind, a, blocks, stream_of(device));
    if (work.sum == nullptr) return;
    add_partial_sums<<<1, kThreads, 0, stream_of(device)>>>(a.partial, blocks, 1,
                                                            static_cast<float*>(work.sum));
    check_launch();
  });
}

}  // namespace fcos_fast
