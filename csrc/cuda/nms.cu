// Sort by score, and stably by class where there are classes. Boxes of one class, a segment, are compared pair by pair
// into a bit mask, 64 boxes a word; then a block per segment walks its words in order. The walk settles 64 boxes at a
// time in one warp's reach: one synchronisation per 64 candidates, not per kept box. Work and memory grow with the
// squares of the segments' lengths, not of their sum.
#include "../math/nms.h"

#include "../nms.h"
#include "../torch_operators.h"
#include "launch_torch.h"

namespace fcos_fast {
namespace {

constexpr int kWord = 64;                 // boxes per word of the mask
constexpr int kPlanThreads = 1024;        // of the one planning block
constexpr int kPlanStretch = 8;           // boxes per thread and step
constexpr int kCompareBlocks = 32 * 132;  // that share the tiles of all segments
constexpr int kWalkThreads = 512;
constexpr int kWalkBlocks = 264;  // that share the segments
constexpr int64_t kMaxBlindWords = int64_t(1)
                                   << 23;  // of mask (64 MiB) that are allocated without asking for less

// The segments in order. Arrays of n + 1; entry s of the last three is the sum over the segments before s, and their
// entry `count` the sum of all.
struct Segments {
  int64_t* count;
  int64_t* start;
  int64_t* chunks;  // of 64 boxes
  int64_t* tiles;   // pairs of chunks
  int64_t* words;   // of mask
};

__device__ __forceinline__ int64_t chunks_of(int64_t boxes) { return (boxes + kWord - 1) / kWord; }

// One block. `classes` are sorted; without them all boxes are one segment.
__global__ void __launch_bounds__(kPlanThreads)
    plan_kernel(const int64_t* classes, int64_t n, Segments segments) {
  int64_t count = 0;
  const int64_t candidates = classes == nullptr ? 1 : n;  // for the start of a segment
  for (int64_t base = 0; base < candidates; base += kPlanThreads * kPlanStretch) {
    const int64_t first = base + threadIdx.x * kPlanStretch;
    bool starts[kPlanStretch];
    int64_t own = 0, found;
#pragma unroll
    for (int k = 0; k < kPlanStretch; ++k) {
      const int64_t i = first + k;
      starts[k] = i < candidates && (i == 0 || classes[i] != classes[i - 1]);
      own += starts[k];
    }
    int64_t place = count + block_prefix_sum(own, &found);
#pragma unroll
    for (int k = 0; k < kPlanStretch; ++k) {
      if (starts[k]) segments.start[place++] = first + k;
    }
    count += found;
  }
  if (threadIdx.x == 0) {
    segments.start[count] = n;
    *segments.count = count;
  }
  __syncthreads();  // the starts are written

  int64_t chunks = 0, tiles = 0, words = 0;
  for (int64_t base = 0; base <= count; base += kPlanThreads) {
    const int64_t s = base + threadIdx.x;
    const int64_t boxes = s < count ? segments.start[s + 1] - segments.start[s] : 0;
    const int64_t own = chunks_of(boxes);
    int64_t more_chunks, more_tiles, more_words;
    const int64_t chunks_before = chunks + block_prefix_sum(own, &more_chunks);
    const int64_t tiles_before = tiles + block_prefix_sum(own * own, &more_tiles);
    const int64_t words_before = words + block_prefix_sum(boxes * own, &more_words);
    if (s <= count) {
      segments.chunks[s] = chunks_before;
      segments.tiles[s] = tiles_before;
      segments.words[s] = words_before;
    }
    chunks += more_chunks;
    tiles += more_tiles;
    words += more_words;
  }
}

// The last s of [0, count) with sums[s] <= x.
__device__ __forceinline__ int64_t segment_of(const int64_t* sums, int64_t count, int64_t x) {
  int64_t low = 0, high = count;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (sums[middle] <= x) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

template <class Real>
__device__ __forceinline__ void read_box(const Real* boxes, int64_t i, Real box[5]) {
#pragma unroll
  for (int c = 0; c < 4; ++c) box[c] = boxes[4 * i + c];
  box[4] = math::box_area(box[0], box[1], box[2], box[3]);
}

// In a segment's mask, row i word w bit k: box 64 w + k comes after box i and falls with it. Only words w >= i / 64 are
// written.
template <class Real>
__global__ void __launch_bounds__(kWord)
    compare_kernel(const Real* boxes, Segments segments, Real threshold, unsigned long long* mask) {
  __shared__ Real others[kWord][5];
  const int64_t count = *segments.count, tiles = segments.tiles[count];
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t s = segment_of(segments.tiles, count, tile);
    const int64_t first = segments.start[s], n = segments.start[s + 1] - first, words = chunks_of(n);
    const int64_t local = tile - segments.tiles[s], row = local / words, column = local - row * words;
    if (column < row) continue;
    __syncthreads();  // the previous tile's boxes are done with
    const int64_t other = column * kWord + threadIdx.x;
    if (other < n) read_box(boxes, first + other, others[threadIdx.x]);
    __syncthreads();
    const int64_t i = row * kWord + threadIdx.x;
    if (i >= n) continue;
    Real box[5];
    read_box(boxes, first + i, box);
    const int boxes_there = int(min(int64_t(kWord), n - column * kWord));
    unsigned long long bits = 0;
    for (int k = row == column ? threadIdx.x + 1 : 0; k < boxes_there; ++k) {
      if (math::overlaps(box, others[k], threshold)) bits |= 1ull << k;
    }
    mask[segments.words[s] + i * words + column] = bits;
  }
}

// kept[r]: is the box of rank r, by falling score, kept? `ranks` of the boxes in the segments' order; null: the same.
// `fallen` is scratch, a word per chunk.
__global__ void __launch_bounds__(kWalkThreads)
    walk_kernel(const unsigned long long* mask, Segments segments, const int64_t* ranks,
                unsigned long long* fallen, bool* kept) {
  __shared__ unsigned long long diagonal[kWord];
  __shared__ unsigned long long kept_bits;
  const int64_t count = *segments.count;
  for (int64_t s = blockIdx.x; s < count; s += gridDim.x) {
    const int64_t start = segments.start[s], n = segments.start[s + 1] - start, words = chunks_of(n);
    const unsigned long long* own_mask = mask + segments.words[s];
    unsigned long long* own_fallen = fallen + segments.chunks[s];
    for (int64_t w = threadIdx.x; w < words; w += kWalkThreads) own_fallen[w] = 0;
    __syncthreads();
    for (int64_t w = 0; w < words; ++w) {
      const int64_t first = w * kWord;
      const int boxes = int(min(int64_t(kWord), n - first));
      if (threadIdx.x < boxes) diagonal[threadIdx.x] = own_mask[(first + threadIdx.x) * words + w];
      __syncthreads();
      if (threadIdx.x == 0) {
        unsigned long long gone = own_fallen[w], survivors = 0;
        for (int k = 0; k < boxes; ++k) {
          if (gone >> k & 1) continue;
          survivors |= 1ull << k;
          gone |= diagonal[k];
        }
        kept_bits = survivors;
      }
      __syncthreads();
      const unsigned long long survivors = kept_bits;
      if (threadIdx.x < boxes) {
        const int64_t i = start + first + threadIdx.x;
        kept[ranks == nullptr ? i : ranks[i]] = survivors >> threadIdx.x & 1;
      }
      for (int64_t v = w + 1 + threadIdx.x; v < words; v += kWalkThreads) {
        unsigned long long bits = own_fallen[v];
        for (unsigned long long rest = survivors; rest != 0; rest &= rest - 1) {
          bits |= own_mask[(first + __ffsll((long long)rest) - 1) * words + v];
        }
        own_fallen[v] = bits;
      }
      __syncthreads();  // `own_fallen` of the next word, and `diagonal`, are settled
    }
  }
}

// How many words the mask needs. More than a little memory is worth waiting for the exact number.
int64_t mask_words(const Segments& segments, int64_t n, bool one_segment, cudaStream_t stream) {
  const int64_t most = n * ((n + kWord - 1) / kWord);
  if (one_segment || most <= kMaxBlindWords) return most;
  int64_t count, words;
  auto read = [&](int64_t* to, const int64_t* from) {
    STD_CUDA_CHECK(cudaMemcpyAsync(to, from, sizeof *to, cudaMemcpyDeviceToHost, stream));
    STD_CUDA_CHECK(cudaStreamSynchronize(stream));
  };
  read(&count, segments.count);
  read(&words, segments.words + count);
  return words;
}

// Which ranks are kept. `boxes` stand in the segments' order.
template <class Real>
Tensor suppress(const Tensor& boxes, const Tensor* classes, const Tensor* ranks, Real threshold,
                cudaStream_t stream) {
  const int64_t n = boxes.size(0);
  auto pointer = [](const Tensor* t) {
    return t == nullptr ? nullptr : static_cast<const int64_t*>(t->const_data_ptr());
  };
  Tensor plan = new_empty(boxes, {1 + 4 * (n + 1)}, ScalarType::Long);
  auto* numbers = static_cast<int64_t*>(plan.mutable_data_ptr());
  const Segments segments{numbers, numbers + 1, numbers + 1 + (n + 1), numbers + 1 + 2 * (n + 1),
                          numbers + 1 + 3 * (n + 1)};
  plan_kernel<<<1, kPlanThreads, 0, stream>>>(pointer(classes), n, segments);
  STD_CUDA_KERNEL_LAUNCH_CHECK();

  Tensor mask = new_empty(boxes, {mask_words(segments, n, classes == nullptr, stream)}, ScalarType::Long);
  auto* bits = static_cast<unsigned long long*>(mask.mutable_data_ptr());
  compare_kernel<<<kCompareBlocks, kWord, 0, stream>>>(static_cast<const Real*>(boxes.const_data_ptr()),
                                                       segments, threshold, bits);
  STD_CUDA_KERNEL_LAUNCH_CHECK();

  Tensor fallen = new_empty(boxes, {n}, ScalarType::Long);
  Tensor kept = new_empty(boxes, {n}, ScalarType::Bool);
  walk_kernel<<<classes == nullptr ? 1 : kWalkBlocks, kWalkThreads, 0, stream>>>(
      bits, segments, pointer(ranks), static_cast<unsigned long long*>(fallen.mutable_data_ptr()),
      static_cast<bool*>(kept.mutable_data_ptr()));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return kept;
}

Tensor nms(const Tensor& boxes, const Tensor& scores, std::optional<Tensor> idxs, double iou_threshold) {
  check_nms(boxes, scores, idxs, iou_threshold);
  const int64_t n = boxes.size(0);
  const OnDeviceOf device(boxes);
  if (n == 0) return new_empty(boxes, {0}, ScalarType::Long);

  const Tensor order = argsort_descending(scores);
  std::optional<Tensor> classes, ranks;
  if (idxs.has_value())
    std::tie(classes, ranks) = sort_ascending(index_select(converted(*idxs, ScalarType::Long), order));
  const Tensor* classes_pointer = classes.has_value() ? &*classes : nullptr;
  const Tensor* ranks_pointer = ranks.has_value() ? &*ranks : nullptr;

  const bool is_double = boxes.scalar_type() == ScalarType::Double;
  const Tensor columns = index_select(converted(boxes, is_double ? ScalarType::Double : ScalarType::Float),
                                      ranks.has_value() ? index_select(order, *ranks) : order);
  const Tensor kept =
      is_double ? suppress<double>(columns, classes_pointer, ranks_pointer, iou_threshold, device.stream())
                : suppress<float>(columns, classes_pointer, ranks_pointer, math::round_down(iou_threshold),
                                  device.stream());
  return index_select(order, nonzero(kept));  // the size of the result is data: here the host waits
}

}  // namespace
}  // namespace fcos_fast

STABLE_TORCH_LIBRARY_IMPL(fcos_fast, CUDA, m) { m.impl("nms", TORCH_BOX(&fcos_fast::nms)); }
