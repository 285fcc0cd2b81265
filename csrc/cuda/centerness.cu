// Each thread processes as many locations as fit into 16 bytes of distances.
#include "../math/centerness.h"

#include "launch.h"

namespace fcos_fast {
namespace {

template <class T>
constexpr int kRows = 4 / sizeof(T) == 1 ? 1 : 2;

// ltrb (n, 4); out is the centerness (n), or the gradient (n, 4) if there is an upstream gradient (n)
template <class T, bool Grad>
__global__ void __launch_bounds__(kThreads)
    centerness_kernel(const T* __restrict__ ltrb, const T* __restrict__ upstream, int64_t n,
                      T* __restrict__ out) {
  constexpr int N = kRows<T>;
  const int64_t stride = int64_t(gridDim.x) * kThreads * N;
  for (int64_t first = (int64_t(blockIdx.x) * kThreads + threadIdx.x) * N; first < n; first += stride) {
    const int rows = int(min(int64_t(N), n - first));
    const auto d = load_pack<4 * N>(ltrb + 4 * first, 4 * rows);
    Pack<T, 4 * N> grads;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const float own[4] = {float(d.v[4 * i]), float(d.v[4 * i + 1]), float(d.v[4 * i + 2]),
                            float(d.v[4 * i + 3])};
      if constexpr (Grad) {
        float grad[4];
        math::centerness_grad(own, i < rows ? float(upstream[first + i]) : 0.0f, grad);
#pragma unroll
        for (int side = 0; side < 4; ++side) grads.v[4 * i + side] = T(grad[side]);
      } else if (i < rows) {
        out[first + i] = T(math::centerness(own));
      }
    }
    if constexpr (Grad) store_pack(out + 4 * first, grads, 4 * rows);
  }
}

}  // namespace

void run_centerness(Cuda device, const CenternessWork& work) {
  dispatch_to_float32(work.dtype, [&](auto element) {
    using T = decltype(element);
    const auto *ltrb = static_cast<const T*>(work.ltrb), *upstream = static_cast<const T*>(work.upstream);
    const auto kernel = upstream == nullptr ? &centerness_kernel<T, false> : &centerness_kernel<T, true>;
    const int blocks = blocks_for((work.n + kRows<T> - 1) / kRows<T>);
    kernel<<<blocks, kThreads, 0, stream_of(device)>>>(ltrb, upstream, work.n, static_cast<T*>(work.out));
    check_launch();
  });
}

}  // namespace fcos_fast
