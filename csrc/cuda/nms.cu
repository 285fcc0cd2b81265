// Sort by score, and stably by class where there are classes. Boxes of one class, a segment, are compared pair by pair
// into a bit mask, 64 boxes a word; then a block per segment walks its words in order. The walk settles 64 boxes at a
// time in one warp's reach: one synchronisation per 64 candidates, not per kept box. Work and memory grow with the
// squares of the segments' lengths, not of their sum.
#include "../math/nms.h"

#include "launch.h"

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

__device__ __forceinline__ void read_box(const float* boxes, int64_t i, float box[5]) {
#pragma unroll
  for (int c = 0; c < 4; ++c) box[c] = boxes[4 * i + c];
  box[4] = math::box_area(box[0], box[1], box[2], box[3]);
}

// In a segment's mask, row i word w bit k: box 64 w + k comes after box i and is suppressed by it. Only words w >= i / 64 are
// written.
__global__ void __launch_bounds__(kWord)
    compare_kernel(const float* boxes, Segments segments, float threshold, unsigned long long* mask) {
  __shared__ float others[kWord][5];
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
    float box[5];
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
// `suppressed` is scratch, a word per chunk.
__global__ void __launch_bounds__(kWalkThreads)
    walk_kernel(const unsigned long long* mask, Segments segments, const int64_t* ranks,
                unsigned long long* suppressed, bool* kept) {
  __shared__ unsigned long long diagonal[kWord];
  __shared__ unsigned long long kept_bits;
  const int64_t count = *segments.count;
  for (int64_t s = blockIdx.x; s < count; s += gridDim.x) {
    const int64_t start = segments.start[s], n = segments.start[s + 1] - start, words = chunks_of(n);
    const unsigned long long* own_mask = mask + segments.words[s];
    unsigned long long* own_suppressed = suppressed + segments.chunks[s];
    for (int64_t w = threadIdx.x; w < words; w += kWalkThreads) own_suppressed[w] = 0;
    __syncthreads();
    for (int64_t w = 0; w < words; ++w) {
      const int64_t first = w * kWord;
      const int boxes = int(min(int64_t(kWord), n - first));
      if (threadIdx.x < boxes) diagonal[threadIdx.x] = own_mask[(first + threadIdx.x) * words + w];
      __syncthreads();
      if (threadIdx.x == 0) {
        unsigned long long gone = own_suppressed[w], survivors = 0;
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
        unsigned long long bits = own_suppressed[v];
        for (unsigned long long rest = survivors; rest != 0; rest &= rest - 1) {
          bits |= own_mask[(first + __ffsll((long long)rest) - 1) * words + v];
        }
        own_suppressed[v] = bits;
      }
      __syncthreads();  // `own_suppressed` of the next word, and `diagonal`, are settled
    }
  }
}

// How many words the mask needs. More than a little memory is worth waiting for the exact number.
int64_t mask_words(const Segments& segments, int64_t n, bool one_segment, cudaStream_t stream) {
  const int64_t most = n * ((n + kWord - 1) / kWord);
  if (one_segment || most <= kMaxBlindWords) return most;
  int64_t count, words;
  const auto read = [&](int64_t* to, const int64_t* from) {
    check_cuda(cudaMemcpyAsync(to, from, sizeof *to, cudaMemcpyDeviceToHost, stream));
    check_cuda(cudaStreamSynchronize(stream));
  };
  read(&count, segments.count);
  read(&words, segments.words + count);
  return words;
}

}  // namespace

void run_nms(Cuda device, const SortedNmsWork& work) {
  const cudaStream_t stream = stream_of(device);
  const bool one_segment = work.classes == nullptr;
  const auto numbers = [&] { return device.scratch<int64_t>(work.n + 1); };
  const Segments segments{device.scratch<int64_t>(1), numbers(), numbers(), numbers(), numbers()};
  plan_kernel<<<1, kPlanThreads, 0, stream>>>(work.classes, work.n, segments);
  check_launch();
  const int64_t words = mask_words(segments, work.n, one_segment, stream);
  auto* mask = device.scratch<unsigned long long>(words);
  const float threshold = math::round_down(work.iou_threshold);
  compare_kernel<<<kCompareBlocks, kWord, 0, stream>>>(work.boxes, segments, threshold, mask);
  check_launch();
  auto* suppressed = device.scratch<unsigned long long>(work.n);
  walk_kernel<<<one_segment ? 1 : kWalkBlocks, kWalkThreads, 0, stream>>>(mask, segments, work.ranks,
                                                                          suppressed, work.kept);
  check_launch();
}

}  // namespace fcos_fast
