// One launch, one block per image.
#include "greedy_nms.h"

namespace fcos_fast {
namespace {

template <class RealType, class Score>
struct PaddedImage {
  using Real = RealType;
  using Key = math::key_t<Score>;
  const Real* boxes;
  const Score* scores;
  const int64_t* labels;
  int64_t n;
  int64_t* indices;

  template <class F>
  __device__ void each_key(const F& f) const {
    for (int64_t i = threadIdx.x; i < n; i += blockDim.x) {
      if (scores[i] != Score(-INFINITY)) f(math::make_key(scores[i], uint32_t(i)));
    }
  }
  __device__ Candidate<Real> candidate(Key key) const {
    const int64_t i = math::index_of(key);
    const Real* b = boxes + 4 * i;
    return {{b[0], b[1], b[2], b[3], math::box_area(b[0], b[1], b[2], b[3])},
            labels == nullptr ? 0 : labels[i]};
  }
  __device__ bool may_be_kept(const Candidate<Real>&) const { return true; }
  __device__ void keep(int64_t slot, Key key) const { indices[slot] = math::index_of(key); }
};

template <class Real, class Score>
__global__ void __launch_bounds__(kImageThreads, 1)
    suppress_kernel(PaddedImage<Real, Score> image, Real threshold, int64_t most, Candidate<Real>* kept,
                    int64_t* counts) {
  __shared__ GreedyMemory<Real, math::key_t<Score>> memory;
  const int64_t b = blockIdx.x;
  image.boxes += 4 * b * image.n;
  image.scores += b * image.n;
  if (image.labels != nullptr) image.labels += b * image.n;
  image.indices += b * most;
  const int64_t count = suppress_image(image, kept + b * most, most, threshold, memory);
  for (int64_t slot = count + threadIdx.x; slot < most; slot += blockDim.x) image.indices[slot] = -1;
  if (threadIdx.x == 0) counts[b] = count;
}

}  // namespace

void run_nms_padded(Cuda device, const NmsPaddedWork& work) {
  const PaddedImage<float, float> image{static_cast<const float*>(work.boxes),
                                        static_cast<const float*>(work.scores), work.labels, work.n,
                                        work.indices};
  auto* kept = device.scratch<Candidate<float>>(work.batch * work.max_detections);
  suppress_kernel<<<unsigned(work.batch), kImageThreads, 0, stream_of(device)>>>(
      image, math::round_down(work.iou_threshold), work.max_detections, kept, work.counts);
  check_launch();
}

}  // namespace fcos_fast
