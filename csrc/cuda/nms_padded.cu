// Two launches: one block per image sorts its first tile, then several blocks compare it, and the last one resolves the
// image. See greedy_nms.h.
#include "greedy_nms.h"

namespace fcos_fast {
namespace {

struct PaddedImage {
  using Label = int64_t;
  const float* __restrict__ scores;    // (N)
  const float4* __restrict__ boxes;    // (N)
  const int64_t* __restrict__ labels;  // (N), or null
  int64_t n, max_detections;
  int64_t* __restrict__ indices;  // (max_detections)

  PaddedImage(const NmsPaddedWork& work)
      : scores(static_cast<const float*>(work.scores)),
        boxes(static_cast<const float4*>(work.boxes)),
        labels(work.labels),
        n(work.n),
        max_detections(work.max_detections),
        indices(work.indices) {}

  // The part of one image; the arrays of all images are contiguous.
  __device__ PaddedImage of(int64_t image) const {
    PaddedImage one = *this;
    one.scores += image * n;
    one.boxes += image * n;
    if (labels != nullptr) one.labels += image * n;
    one.indices += image * max_detections;
    return one;
  }
  template <class F>
  __device__ void each_key(const F& f) const {
    for (int64_t i = threadIdx.x; i < n; i += kImageThreads) {
      if (scores[i] != -INFINITY) f(math::make_key(scores[i], uint32_t(i)));
    }
  }
  __device__ Label candidate(Key key, float4& box) const {
    const int64_t i = math::index_of(key);
    box = boxes[i];
    return labels == nullptr ? 0 : labels[i];
  }
  __device__ bool may_be_kept(const float4&) const { return true; }
  __device__ void keep(int64_t slot, Key key) const { indices[slot] = math::index_of(key); }
};

using Label = PaddedImage::Label;

// One block per image.
__global__ void __launch_bounds__(kImageThreads, 2) sort_kernel(PaddedImage images, FirstTiles<Label> first) {
  __shared__ SelectionMemory memory;
  __shared__ Key keys[kTile];
  const int64_t image = blockIdx.x;
  sort_first_tile(images.of(image), image, first, memory, keys);
}

// Blocks (image, pairs).
__global__ void __launch_bounds__(kImageThreads, 2)
    suppress_kernel(PaddedImage images, FirstTiles<Label> first, Kept<Label> kept, float threshold,
                    int64_t* __restrict__ counts) {
  __shared__ GreedyMemory<Label> memory;
  const int64_t image = blockIdx.x;
  compare_first_tile(first, image, int(blockIdx.y), int(gridDim.y), threshold, memory.tile);
  if (!is_last_block(&first.arrived[image], gridDim.y)) return;
  const PaddedImage problem = images.of(image);
  const int count = suppress_image(problem, first, image, kept.of(image), threshold, memory);
  for (int64_t slot = count + threadIdx.x; slot < images.max_detections; slot += kImageThreads)
    problem.indices[slot] = -1;
  if (threadIdx.x == 0) counts[image] = count;
}

}  // namespace

void run_nms_padded(Cuda device, const NmsPaddedWork& work) {
  const cudaStream_t stream = stream_of(device);
  const PaddedImage images(work);
  const FirstTiles<Label> first(device, work.batch, work.n);
  sort_kernel<<<unsigned(work.batch), kImageThreads, 0, stream>>>(images, first);
  check_launch();
  const Kept<Label> kept(device, work.batch, std::min(work.n, work.max_detections));
  const dim3 grid{unsigned(work.batch), unsigned(first.compare_blocks(work.batch))};
  suppress_kernel<<<grid, kImageThreads, 0, stream>>>(images, first, kept,
                                                      math::round_down(work.iou_threshold), work.counts);
  check_launch();
}

}  // namespace fcos_fast
