// One pass over the logits in memory order, 16 bytes per access. Each block processes one tile. Sums use one partial
// sum per tile, added in order by a second, tiny launch, so that they do not depend on the device.
#include "../math/focal_loss.h"

#include "class_focal.h"

namespace fcos_fast {
namespace {

template <class T>
struct DenseMap {
  const T* __restrict__ x;         // (n)
  const T* __restrict__ targets;   // (n)
  const T* __restrict__ upstream;  // (n)
  T* __restrict__ out;             // (n): losses or their gradient
  int64_t n;
};

template <class T>
int64_t dense_tiles(int64_t n) {
  constexpr int64_t kTile = int64_t(kFocalThreads) * kPacksPerThread * Vector<T>::kSize;
  return (n + kTile - 1) / kTile;
}

// Processes one pack; returns the sum of its losses.
template <class V, Want Wanted, class T, class Form>
__device__ __forceinline__ float dense_pack(const DenseMap<T>& map, int64_t at, const Form& form,
                                            float scale) {
  const V x = load<V>(map.x + at), targets = load<V>(map.targets + at);
  V upstream;
  if constexpr (Wanted == Want::kGradOfElements) upstream = load<V>(map.upstream + at);
  float results[V::kSize], loss = 0;
#pragma unroll
  for (int i = 0; i < V::kSize; ++i) {
    const auto value = form.soft(x[i], targets[i]);
    if constexpr (sums(Wanted)) loss += value.loss;
    if constexpr (Wanted == Want::kElements) {
      results[i] = value.loss;
    } else {
      results[i] = value.grad * (Wanted == Want::kGradOfElements ? upstream[i] : scale);
    }
  }
  if constexpr (Wanted != Want::kSum) store(map.out + at, V::of(results));
  return loss;
}

// The sum over the threads of the block, if the losses are summed.
template <Want Wanted>
__device__ __forceinline__ void store_sum(double* partial, double loss) {
  if constexpr (sums(Wanted)) {
    const double total = block_sum(loss);
    if (threadIdx.x == 0) partial[blockIdx.x] = total;
  }
}

template <Want Wanted, class T, class Form>
__global__ void __launch_bounds__(kFocalThreads)
    dense_kernel(const DenseMap<T> map, const Form form, const float* __restrict__ scale_of_sum,
                 double* __restrict__ partial) {
  constexpr int N = Vector<T>::kSize;
  const float scale = scale_of_sum != nullptr ? *scale_of_sum : 1.0f;
  const int64_t packs = map.n / N;
  int64_t pack = int64_t(blockIdx.x) * kPacksPerThread * kFocalThreads + threadIdx.x;
  float loss = 0;
#pragma unroll 1
  for (int k = 0; k < kPacksPerThread && pack < packs; ++k, pack += kFocalThreads) {
    loss += dense_pack<Vector<T>, Wanted>(map, pack * N, form, scale);
  }
  const int64_t rest = packs * N + threadIdx.x;
  if (blockIdx.x == 0 && rest < map.n) loss += dense_pack<Single<T>, Wanted>(map, rest, form, scale);
  store_sum<Wanted>(partial, loss);
}

// At 48 registers, five blocks fit on a multiprocessor.
template <Want Wanted, class T, class Form>
__global__ void __launch_bounds__(kFocalThreads, 5)
    class_kernel(const __grid_constant__ ClassMap<T> map, const Form form,
                 const float* __restrict__ scale_of_sum, double* __restrict__ partial) {
  const float scale = scale_of_sum != nullptr ? *scale_of_sum : 1.0f;
  store_sum<Wanted>(partial, focal_tile<Wanted>(map, blockIdx.x, form, [scale](int64_t) { return scale; }));
}

// One weight per image of the map, which is a row of the logits. A thread processes eight classes of a row.
template <Want Wanted, class T, class Form>
__global__ void __launch_bounds__(kFocalThreads)
    weighted_kernel(const __grid_constant__ ClassMap<T> map, const Form form,
                    const float* __restrict__ scale_of_sum, const float* __restrict__ weights,
                    double* __restrict__ partial) {
  const float scale = scale_of_sum != nullptr ? *scale_of_sum : 1.0f;
  const int64_t item = int64_t(blockIdx.x) * kFocalThreads + threadIdx.x;
  double total = 0;
  if (item < plane_items(map)) {
    total = plane_item<Wanted, Single<T>>(map, item, form,
                                          [scale, weights](int64_t row) { return scale * weights[row]; });
  }
  store_sum<Wanted>(partial, total);
}

// With weights every row is an image of one location.
template <class T>
ClassMap<T> class_map(const FocalLossWork& work, T* out) {
  ClassMap<T> map{static_cast<const T*>(work.x), static_cast<const T*>(work.upstream), out, work.labels};
  const bool rows = work.inner == 1 && work.weights == nullptr;
  map.channels_last = rows && work.classes > 1;
  map.images = rows ? 1 : work.outer;
  map.locations = rows ? work.outer : work.inner;
  map.label_stride = map.locations;
  map.classes = int32_t(work.classes);
  prepare_rows(map);
  return map;
}

Want wanted(const FocalLossWork& work) {
  if (work.loss != nullptr) return Want::kElements;
  if (work.sum != nullptr) return work.grad != nullptr ? Want::kSumAndGrad : Want::kSum;
  return work.upstream != nullptr ? Want::kGradOfElements : Want::kGrad;
}

// Calls f with the requested outputs as a compile-time constant.
template <class F>
void dispatch_wanted(Want want, const F& f) {
  switch (want) {
    case Want::kElements:
      return f(std::integral_constant<Want, Want::kElements>());
    case Want::kSum:
      return f(std::integral_constant<Want, Want::kSum>());
    case Want::kGrad:
      return f(std::integral_constant<Want, Want::kGrad>());
    case Want::kGradOfElements:
      return f(std::integral_constant<Want, Want::kGradOfElements>());
    case Want::kSumAndGrad:
      return f(std::integral_constant<Want, Want::kSumAndGrad>());
  }
}

template <class T, class Form>
void launch(const Cuda& device, const FocalLossWork& work, const Form& form) {
  T* out = static_cast<T*>(work.loss != nullptr ? work.loss : work.grad);
  const auto* scale = static_cast<const float*>(work.scale);
  const auto* weights = static_cast<const float*>(work.weights);
  const bool dense = work.targets != nullptr;
  const DenseMap<T> elements{static_cast<const T*>(work.x), static_cast<const T*>(work.targets),
                             static_cast<const T*>(work.upstream), out, work.n};
  const ClassMap<T> classes = class_map<T>(work, out);
  const int64_t tiles = work.n == 0 ? 0 : dense ? dense_tiles<T>(work.n) : focal_tiles(classes);
  double* partial = work.sum != nullptr ? device.scratch<double>(tiles) : nullptr;
  dispatch_wanted(wanted(work), [&](auto want) {
    if (tiles == 0) return;
    if (dense) {
      dense_kernel<want()>
          <<<unsigned(tiles), kFocalThreads, 0, stream_of(device)>>>(elements, form, scale, partial);
    } else if (weights != nullptr) {
      weighted_kernel<want()>
          <<<unsigned(tiles), kFocalThreads, 0, stream_of(device)>>>(classes, form, scale, weights, partial);
    } else {
      class_kernel<want()>
          <<<unsigned(tiles), kFocalThreads, 0, stream_of(device)>>>(classes, form, scale, partial);
    }
    check_launch();
  });
  if (work.sum == nullptr) return;
  add_partial_sums<<<1, kSumThreads, 0, stream_of(device)>>>(partial, tiles, 1,
                                                             static_cast<float*>(work.sum));
  check_launch();
}

}  // namespace

void run_focal_loss(Cuda device, const FocalParameters& parameters, const FocalLossWork& work) {
  dispatch_to_float32(work.dtype, [&](auto element) {
    using T = decltype(element);
    if (parameters.star) return launch<T>(device, work, math::FocalLossStar<float>(parameters));
    if (parameters.gamma == 2) return launch<T>(device, work, math::FocalLossSquare<float>(parameters));
    launch<T>(device, work, math::FocalLoss<float>(parameters));
  });
}

}  // namespace fcos_fast
