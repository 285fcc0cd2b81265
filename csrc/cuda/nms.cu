// All pairs of boxes within a class (a segment) are compared into a bit mask, 64 boxes per word; then one block per
// segment walks through its words in order. The walk resolves 64 boxes at a time, with two synchronizations per 64
// candidates instead of per kept box. Work and memory grow with the squares of the segments' lengths, not with the
// square of their sum.
#include "launch.h"
#include "suppression.h"

namespace fcos_fast {
namespace {

constexpr int kWord = 64;                 // boxes per word of the mask
constexpr int kPlanThreads = 1024;        // of the single planning block
constexpr int kPlanStretch = 8;           // boxes per thread and step
constexpr int kCompareBlocks = 32 * 132;  // distributed over the tiles of all segments
constexpr int kWalkThreads = 512;
constexpr int kRows = 8;          // of the mask per thread and step
constexpr int kWalkBlocks = 264;  // distributed over the segments
constexpr int64_t kMaxBlindWords = int64_t(1)
                                   << 23;  // of the mask (64 MiB), allocated without computing the exact size

// The segments in order. Arrays of n + 1. Entry s of the last three is the sum over the segments before s; entry
// `count` is the total.
struct Segments {
  int64_t* count;
  int64_t* start;
  int64_t* chunks;  // chunks of 64 boxes
  int64_t* tiles;   // pairs of chunks
  int64_t* words;   // words of the mask
};

__device__ __forceinline__ int64_t chunks_of(int64_t boxes) { return (boxes + kWord - 1) / kWord; }

// A single block. `classes` are sorted; if null, all boxes are one segment.
__global__ void __launch_bounds__(kPlanThreads)
    plan_kernel(const int64_t* classes, int64_t n, Segments segments) {
  int64_t count = 0;
  const int64_t candidates = classes == nullptr ? 1 : n;  // possible segment starts
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

// In a segment's mask, bit k in word w > i / 64 of row i: box i suppresses box 64 w + k if it is kept. Word w = i / 64,
// of the box's own group, is transposed: its bits are the earlier boxes that suppress box i. Other words are not
// written.
__global__ void __launch_bounds__(kWord)
    compare_kernel(const float4* __restrict__ boxes,  // (N)
                   Segments segments, float threshold,
                   unsigned long long* __restrict__ mask) {  // (words of all segments)
  __shared__ float4 others[kWord];
  const int64_t count = *segments.count, tiles = segments.tiles[count];
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t s = segment_of(segments.tiles, count, tile);
    const int64_t first = segments.start[s], n = segments.start[s + 1] - first, words = chunks_of(n);
    const int64_t local = tile - segments.tiles[s], row = local / words, column = local - row * words;
    if (column < row) continue;
    __syncthreads();  // the previous tile's boxes are no longer needed
    const int64_t other = column * kWord + threadIdx.x;
    if (other < n) others[threadIdx.x] = boxes[first + other];
    __syncthreads();
    const int64_t i = row * kWord + threadIdx.x;
    if (i >= n) continue;
    const float4 box = boxes[first + i];
    const int end = row == column ? int(threadIdx.x) : int(min(int64_t(kWord), n - column * kWord));
    unsigned long long bits = 0;
    for (int k = 0; k < end; ++k) {
      if (overlaps(box, others[k], threshold)) bits |= 1ull << k;
    }
    mask[segments.words[s] + i * words + column] = bits;
  }
}

// A lane's share of a group of 64 boxes: the words of boxes `lane` and `lane` + 32 in the group's own column.
struct OwnWords {
  bool low_there, high_there;
  unsigned long long low, high;
};
__device__ __forceinline__ OwnWords load_own_words(const unsigned long long* mask, int64_t words,
                                                   int64_t word, int64_t n) {
  const int64_t low = word * kWord + threadIdx.x % 32, high = low + 32;
  return {low < n, high < n, low < n ? mask[low * words + word] : 0,
          high < n ? mask[high * words + word] : 0};
}

// The indices of the set bits in order, the last one repeated up to a multiple of kRows. Called by threads below kWord.
__device__ __forceinline__ void list_bits(unsigned long long bits, unsigned char* places) {
  const int own = threadIdx.x, count = __popcll(bits);
  if (!(bits >> own & 1)) return;
  const int place = __popcll(bits & ((1ull << own) - 1));
  places[place] = (unsigned char)own;
  for (int i = count; place == count - 1 && i % kRows != 0; ++i) places[i] = (unsigned char)own;
}

// kept[r]: is the box with rank r in descending score order kept? `ranks`: of the boxes in segment order; null if the
// orders are the same. `suppressed`: scratch memory, a word per chunk.
__global__ void __launch_bounds__(kWalkThreads)
    walk_kernel(const unsigned long long* __restrict__ mask,  // (words of all segments)
                Segments segments,
                const int64_t* __restrict__ ranks,  // (N)
                unsigned long long* suppressed,     // (chunks of all segments)
                bool* __restrict__ kept) {          // (N)
  __shared__ unsigned long long next_suppressed;
  __shared__ unsigned long long rows[kWord / kRows];  // indices of the survivors, a byte each
  static_assert(kRows == 8, "one access reads kRows bytes");
  const int64_t count = *segments.count;
  const int lane = threadIdx.x % 32;
  for (int64_t s = blockIdx.x; s < count; s += gridDim.x) {
    const int64_t start = segments.start[s], n = segments.start[s + 1] - start, words = chunks_of(n);
    const unsigned long long* own_mask = mask + segments.words[s];
    unsigned long long* own_suppressed = suppressed + segments.chunks[s];
    for (int64_t w = threadIdx.x; w < words; w += kWalkThreads) own_suppressed[w] = 0;
    if (threadIdx.x == 0) next_suppressed = 0;
    __syncthreads();
    OwnWords next = load_own_words(own_mask, words, 0, n);
    for (int64_t w = 0; w < words; ++w) {
      const OwnWords own = next;
      const unsigned long long gone = next_suppressed;
      if (w + 1 < words) next = load_own_words(own_mask, words, w + 1, n);
      const auto survivors = resolve(own.low_there && !(gone >> lane & 1), own.low,
                                     own.high_there && !(gone >> (lane + 32) & 1), own.high);
      if (threadIdx.x < kWord) list_bits(survivors, reinterpret_cast<unsigned char*>(rows));
      __syncthreads();  // all threads have read `next_suppressed`; `rows` is written
      const unsigned long long* first_row = own_mask + w * kWord * words;
      // Each thread always updates the same words of `own_suppressed`, so no synchronization is needed.
      for (int64_t v = words - 1 - threadIdx.x; v > w; v -= kWalkThreads) {
        unsigned long long bits = own_suppressed[v];
        for (int j = 0; j < __popcll(survivors); j += kRows) {
          const unsigned long long eight = rows[j / kRows];
          unsigned long long found[kRows];
#pragma unroll
          for (int k = 0; k < kRows; ++k)
            found[k] = first_row[v + (eight >> 8 * k & 255) * (unsigned long long)(unsigned(words))];
#pragma unroll
          for (int k = 0; k < kRows; ++k) bits |= found[k];
        }
        own_suppressed[v] = bits;
        if (v == w + 1) next_suppressed = bits;
      }
      const int64_t i = w * kWord + threadIdx.x;
      if (threadIdx.x < kWord && i < n)
        kept[ranks == nullptr ? start + i : ranks[start + i]] = survivors >> threadIdx.x & 1;
      __syncthreads();  // `next_suppressed` is final, `rows` is no longer needed
    }
  }
}

// Number of words of the mask. If the upper bound is large, synchronizes to read the exact number.
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
  compare_kernel<<<kCompareBlocks, kWord, 0, stream>>>(reinterpret_cast<const float4*>(work.boxes), segments,
                                                       threshold, mask);
  check_launch();
  auto* suppressed = device.scratch<unsigned long long>(work.n);
  walk_kernel<<<one_segment ? 1 : kWalkBlocks, kWalkThreads, 0, stream>>>(mask, segments, work.ranks,
                                                                          suppressed, work.kept);
  check_launch();
}

}  // namespace fcos_fast
