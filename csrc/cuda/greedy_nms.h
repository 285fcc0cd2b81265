// Greedy suppression in each image of a batch: the keys with the greatest scores are selected, sorted, and resolved in
// descending order. Keys are processed one tile at a time, so later tiles are skipped if the image has enough boxes.
//
// The first tile, usually the only one, is distributed over the device: one block sorts it and decodes its boxes
// (sort_first_tile), many blocks compare pairs of groups (compare_first_tile), and the last of these to finish resolves
// the image (suppress_image): first with those comparisons, then, if more boxes are needed, tile by tile against the
// boxes kept so far.
//
// Results depend only on the keys, not on the order of threads and blocks.
#pragma once

#include "launch.h"
#include "suppression.h"

namespace fcos_fast {

using Key = math::key_t<float>;

constexpr int kGroup = 64;   // candidates that are resolved together
constexpr int kWorkers = 8;  // adjacent threads per candidate
constexpr int kImageThreads = kGroup * kWorkers;
constexpr int kTile = 2 * kImageThreads;  // keys per sort
constexpr int64_t kCompareBlocks = 528;   // over all images: four for each of 132 multiprocessors
constexpr int kNearKept = 256;            // kept boxes in shared memory; the others are in global memory
static_assert(kWorkers == 8 && kGroup == 64, "each worker has one byte of the group's 64 bits");

// ---- selection ----

struct Selection {
  Key cutoff;      // keys >= cutoff are selected
  unsigned total;  // number of all keys
  unsigned taken;  // number of selected keys, if they were collected
};

struct SelectionMemory {
  unsigned histogram[256];
  unsigned long long least, greatest;  // scores
  unsigned total, above, taken;
  int digit;
};

// Counts the keys and computes the range of their scores.
template <class Source>
__device__ void survey(const Source& source, SelectionMemory& memory) {
  if (threadIdx.x == 0) {
    memory.least = ~0ull;
    memory.greatest = 0;
    memory.total = 0;
  }
  __syncthreads();
  unsigned long long least = ~0ull, greatest = 0;
  unsigned total = 0;
  source([&](auto key) {
    const auto score = (unsigned long long)(key >> 32);
    least = min(least, score);
    greatest = max(greatest, score);
    ++total;
  });
  for (int offset = 16; offset > 0; offset /= 2) {
    least = min(least, __shfl_down_sync(kWholeWarp, least, offset));
    greatest = max(greatest, __shfl_down_sync(kWholeWarp, greatest, offset));
    total += __shfl_down_sync(kWholeWarp, total, offset);
  }
  if (threadIdx.x % 32 == 0) {
    atomicMin(&memory.least, least);
    atomicMax(&memory.greatest, greatest);
    atomicAdd(&memory.total, total);
  }
  __syncthreads();
}

// The digit at which the number of keys, counted from the greatest digit down, first exceeds `wanted`. `above` is the
// number of keys with a greater digit. Called by the first warp.
__device__ __forceinline__ void find_digit(unsigned wanted, SelectionMemory& memory) {
  constexpr int kPerLane = 256 / 32;
  const int lane = threadIdx.x, first = 255 - lane * kPerLane;
  unsigned own = 0;
#pragma unroll
  for (int i = 0; i < kPerLane; ++i) own += memory.histogram[first - i];
  unsigned upto = own;
  for (int offset = 1; offset < 32; offset *= 2) {
    const unsigned before = __shfl_up_sync(kWholeWarp, upto, offset);
    if (lane >= offset) upto += before;
  }
  if (upto > wanted && upto - own <= wanted) {  // true for exactly one lane
    unsigned above = upto - own;
    int digit = first;
    while (above + memory.histogram[digit] <= wanted) above += memory.histogram[digit--];
    memory.above = above;
    memory.digit = digit;
  }
}

// Finds a cutoff such that at most `most` keys are >= cutoff, and at least `least` if there are that many. source(f)
// calls f for all keys, distributed over the threads of the block. Radix selection, from the highest bit in which
// scores differ.
template <class Source>
__device__ Selection select_greatest(const Source& source, unsigned most, unsigned least,
                                     SelectionMemory& memory) {
  constexpr int kDigit = 8;
  survey(source, memory);
  const unsigned total = memory.total;
  if (total <= most) return {1, total, 0};

  const unsigned long long differing = memory.least ^ memory.greatest;
  // The digit with the highest differing bit; all keys agree above it.
  const int highest = differing == 0 ? 31 : 32 + 63 - __clzll((long long)differing);
  int shift = highest / kDigit * kDigit;
  Key prefix = (Key(memory.greatest) << 32) >> shift >> kDigit << kDigit << shift;
  unsigned above = 0;
  for (;; shift -= kDigit) {
    for (int i = threadIdx.x; i < 256; i += blockDim.x) memory.histogram[i] = 0;
    __syncthreads();
    source([&](Key key) {
      if ((key ^ prefix) >> shift >> kDigit == 0)
        atomicAdd(&memory.histogram[unsigned(key >> shift) & 255u], 1u);
    });
    __syncthreads();
    if (threadIdx.x < 32) find_digit(most - above, memory);
    __syncthreads();
    above += memory.above;
    // Keys are unique, so the selection ends at shift 0 at the latest.
    if (above >= least) return {prefix + (Key(memory.digit + 1) << shift), total, 0};
    prefix |= Key(memory.digit) << shift;
  }
}

// ---- sorting ----

// Bitonic sort of keys in shared memory, in descending order; there must be room for the next power of two.
__device__ __forceinline__ void sort_descending(Key* keys, int count) {
  int padded = 1;
  while (padded < count) padded *= 2;
  for (int i = count + threadIdx.x; i < padded; i += blockDim.x) keys[i] = 0;
  __syncthreads();
  for (int size = 2; size <= padded; size *= 2) {
    for (int stride = size / 2; stride > 0; stride /= 2) {
      for (int pair = threadIdx.x; pair < padded / 2; pair += blockDim.x) {
        const int low = 2 * pair - (pair & (stride - 1));
        const Key a = keys[low], b = keys[low + stride];
        const bool descending = (low & size) == 0;
        if ((a < b) == descending) {
          keys[low] = b;
          keys[low + stride] = a;
        }
      }
      __syncthreads();
    }
  }
}

// ---- tiles ----

// Interface of Problem: the type Label; each_key(f) calls f for all keys of the image, distributed over the threads of
// the block; candidate(key, box) returns the label and writes the box in NMS coordinates; may_be_kept(box); keep(slot,
// key) writes a result.

template <class Label>
struct Tile {  // in shared memory
  Key keys[kTile];
  float4 boxes[kTile];
  Label labels[kTile];
};

// The first tile of each image, in global memory. Bit k in word w of a candidate's suppressors: candidate 64 w + k has
// a greater key, and suppresses this one if it is kept. Words w > candidate / 64 are not written.
template <class Label>
struct FirstTiles {
  int length;                       // capacity per image, a multiple of kGroup
  Key* keys;                        // (B, length)
  float4* boxes;                    // (B, length)
  Label* labels;                    // (B, length)
  unsigned long long* suppressors;  // (B, length, length / kGroup)
  unsigned* sizes;                  // (B)
  unsigned* totals;                 // (B) number of all keys
  unsigned* arrived;                // (B) finished blocks of compare_first_tile

  // For images with at most n candidates.
  FirstTiles(const Cuda& device, int64_t batch, int64_t n)
      : length(int(std::min<int64_t>(kTile, std::max<int64_t>(1, (n + kGroup - 1) / kGroup) * kGroup))),
        keys(device.scratch<Key>(batch * length)),
        boxes(device.scratch<float4>(batch * length)),
        labels(device.scratch<Label>(batch * length)),
        suppressors(device.scratch<unsigned long long>(batch * length * (length / kGroup))),
        sizes(device.scratch<unsigned>(batch)),
        totals(device.scratch<unsigned>(batch)),
        arrived(device.scratch<unsigned>(batch)) {}

  // Number of blocks of compare_first_tile per image.
  int compare_blocks(int64_t batch) const {
    const int64_t groups = length / kGroup, pairs = groups * (groups + 1) / 2;
    return int(std::max<int64_t>(1, std::min<int64_t>(pairs, kCompareBlocks / batch)));
  }

  __device__ const unsigned long long* suppressors_of(int64_t image, int candidate) const {
    return suppressors + (image * length + candidate) * (length / kGroup);
  }
};

// Loads the next tile: the greatest keys <= `last` in descending order, at most kTile.
template <class Problem>
__device__ Selection take_greatest(const Problem& problem, Key last, SelectionMemory& memory, Key* keys) {
  const auto remaining = [&](const auto& f) {
    problem.each_key([&](Key key) {
      if (key <= last) f(key);
    });
  };
  Selection selection = select_greatest(remaining, kTile, kTile / 2, memory);
  if (threadIdx.x == 0) memory.taken = 0;
  __syncthreads();
  remaining([&](Key key) {
    if (key >= selection.cutoff) keys[atomicAdd(&memory.taken, 1u)] = key;
  });
  __syncthreads();
  selection.taken = memory.taken;
  sort_descending(keys, int(selection.taken));
  return selection;
}

// `keys`: shared memory for one tile.
template <class Problem, class Label>
__device__ void sort_first_tile(const Problem& problem, int64_t image, const FirstTiles<Label>& first,
                                SelectionMemory& memory, Key* keys) {
  const Selection selection = take_greatest(problem, ~Key(0), memory, keys);
  for (unsigned i = threadIdx.x; i < selection.taken; i += kImageThreads) {
    const int64_t at = image * first.length + i;
    first.keys[at] = keys[i];
    first.labels[at] = problem.candidate(keys[i], first.boxes[at]);
  }
  if (threadIdx.x == 0) {
    first.sizes[image] = selection.taken;
    first.totals[image] = selection.total;
    first.arrived[image] = 0;
  }
}

// Bit k: candidate `first` + k of the tile precedes `own`, and suppresses it if it is kept.
template <class Label>
__device__ __forceinline__ unsigned char suppressor_bits(const Tile<Label>& tile, int own, int first,
                                                         float threshold) {
  const float4 box = tile.boxes[own];
  const Label label = tile.labels[own];
  unsigned bits = 0;
#pragma unroll
  for (int k = 0; k < 8; ++k) {
    const int other = first + k;
    if (other < own && tile.labels[other] == label && overlaps(tile.boxes[other], box, threshold))
      bits |= 1u << k;
  }
  return (unsigned char)bits;
}

// Loads the image's first tile and compares the pairs of groups block, block + blocks, ...
template <class Label>
__device__ void compare_first_tile(const FirstTiles<Label>& first, int64_t image, int block, int blocks,
                                   float threshold, Tile<Label>& tile) {
  const int size = int(first.sizes[image]), groups = (size + kGroup - 1) / kGroup;
  for (int i = threadIdx.x; i < size; i += kImageThreads) {
    const int64_t at = image * first.length + i;
    tile.keys[i] = first.keys[at];
    tile.boxes[i] = first.boxes[at];
    tile.labels[i] = first.labels[at];
  }
  __syncthreads();
  const int in_group = int(threadIdx.x) / kWorkers, worker = int(threadIdx.x) % kWorkers;
  for (int pair = block; pair < groups * (groups + 1) / 2; pair += blocks) {
    int row = 0;  // of (0, 0), (1, 0), (1, 1), (2, 0), ...
    while ((row + 1) * (row + 2) / 2 <= pair) ++row;
    const int column = pair - row * (row + 1) / 2, own = row * kGroup + in_group;
    if (own >= size) continue;
    auto* words = first.suppressors + (image * first.length + own) * (first.length / kGroup);
    reinterpret_cast<unsigned char*>(words + column)[worker] =
        suppressor_bits(tile, own, column * kGroup + worker * kWorkers, threshold);
  }
}

// ---- suppression ----

template <class Label>
struct GreedyMemory {
  SelectionMemory selection;
  Tile<Label> tile;
  unsigned short chosen[kTile];  // indices of the kept candidates of the tile
  float4 kept_boxes[kNearKept];
  Label kept_labels[kNearKept];
  bool suppressed[kGroup];
  unsigned long long suppressors[kGroup];  // within the same group
};

// The kept boxes of an image; from index kNearKept, they are in global memory.
template <class Label>
struct Kept {
  int most, room, count = 0;
  float4* boxes;  // (B, room)
  Label* labels;  // (B, room)

  Kept(const Cuda& device, int64_t batch, int64_t most)
      : most(int(most)),
        room(int(std::max<int64_t>(0, most - kNearKept))),
        boxes(device.scratch<float4>(batch * room)),
        labels(device.scratch<Label>(batch * room)) {}

  // The part of one image.
  __device__ Kept of(int64_t image) const {
    Kept one = *this;
    one.boxes += image * room;
    one.labels += image * room;
    return one;
  }
};

// Resolves the group of candidates starting at `begin`. is_suppressed(i, worker): is candidate i suppressed by one of
// the previously kept boxes that this worker (of eight) compares? suppressors(i, worker): a byte whose bit k stands for
// candidate 8 worker + k of the group. Returns the mask of kept candidates to all threads.
template <class Problem, class Label, class IsSuppressed, class Suppressors>
__device__ unsigned long long settle_group(const Problem& problem, GreedyMemory<Label>& memory, int begin,
                                           int size, Kept<Label>& kept, int chosen_before,
                                           const IsSuppressed& is_suppressed,
                                           const Suppressors& suppressors) {
  const int own = int(threadIdx.x) / kWorkers, worker = int(threadIdx.x) % kWorkers, i = begin + own;
  bool gone = i >= size || (worker == 0 && !problem.may_be_kept(memory.tile.boxes[i]));
  if (i < size) {
    gone = is_suppressed(i, worker) || gone;
    reinterpret_cast<unsigned char*>(&memory.suppressors[own])[worker] = suppressors(i, worker);
  }
  const unsigned votes = __ballot_sync(kWholeWarp, gone);
  if (worker == 0) memory.suppressed[own] = (votes >> (threadIdx.x % 32) & 0xffu) != 0;
  __syncthreads();
  const int lane = int(threadIdx.x) % 32;
  const auto word = [&](int at) { return begin + at < size ? memory.suppressors[at] : 0; };
  auto chosen = resolve(!memory.suppressed[lane], word(lane), !memory.suppressed[lane + 32], word(lane + 32));
  while (kept.count + __popcll(chosen) > kept.most) chosen ^= 1ull << (63 - __clzll((long long)chosen));
  if (threadIdx.x < kGroup && (chosen >> threadIdx.x & 1)) {
    const int before = __popcll(chosen & ((1ull << threadIdx.x) - 1)), slot = kept.count + before;
    const int candidate = begin + int(threadIdx.x);
    memory.chosen[chosen_before + before] = (unsigned short)candidate;
    const bool is_near = slot < kNearKept;
    (is_near ? memory.kept_boxes[slot] : kept.boxes[slot - kNearKept]) = memory.tile.boxes[candidate];
    (is_near ? memory.kept_labels[slot] : kept.labels[slot - kNearKept]) = memory.tile.labels[candidate];
  }
  kept.count += __popcll(chosen);
  __syncthreads();  // the kept boxes are written, the group is no longer needed
  return chosen;
}

// Writes the results of the tile's kept candidates.
template <class Problem, class Label>
__device__ void keep_chosen(const Problem& problem, const GreedyMemory<Label>& memory, int first_slot,
                            int end) {
  for (int slot = first_slot + int(threadIdx.x); slot < end; slot += kImageThreads)
    problem.keep(slot, memory.tile.keys[memory.chosen[slot - first_slot]]);
  __syncthreads();  // the tile is no longer needed
}

// The part of a candidate's suppressors in the first tile that one worker needs.
struct SuppressorWords {
  unsigned long long low, high;  // words `worker` and `worker` + 8
  unsigned char own;             // byte `worker` of its own group
};
__device__ __forceinline__ SuppressorWords load_suppressors(const unsigned long long* words, int group,
                                                            int worker) {
  return {worker < group ? words[worker] : 0, worker + kWorkers < group ? words[worker + kWorkers] : 0,
          reinterpret_cast<const unsigned char*>(words + group)[worker]};
}

// Resolves the first tile, whose groups have all been compared, in `memory`.
template <class Problem, class Label>
__device__ void suppress_first_tile(const Problem& problem, const FirstTiles<Label>& first, int64_t image,
                                    Kept<Label>& kept, GreedyMemory<Label>& memory) {
  const int size = int(first.sizes[image]), worker = int(threadIdx.x) % kWorkers;
  const auto load = [&](int begin) {
    const int i = begin + int(threadIdx.x) / kWorkers;
    return i < size ? load_suppressors(first.suppressors_of(image, i), begin / kGroup, worker)
                    : SuppressorWords{};
  };
  unsigned long long low = 0, high = 0;  // kept candidates of the groups `worker` and `worker` + 8
  SuppressorWords next = load(0);
  for (int begin = 0; begin < size && kept.count < kept.most; begin += kGroup) {
    const SuppressorWords words = next;
    next = load(begin + kGroup);
    const auto chosen = settle_group(
        problem, memory, begin, size, kept, kept.count,
        [&](int, int) { return ((words.low & low) | (words.high & high)) != 0; },
        [&](int, int) { return words.own; });
    if (begin / kGroup == worker) low = chosen;
    if (begin / kGroup == worker + kWorkers) high = chosen;
  }
  keep_chosen(problem, memory, 0, kept.count);
}

// Resolves the keys <= `last`, tile by tile.
template <class Problem, class Label>
__device__ void suppress_further_tiles(const Problem& problem, Key last, Kept<Label>& kept, float threshold,
                                       GreedyMemory<Label>& memory) {
  Tile<Label>& tile = memory.tile;
  for (;;) {
    const Selection selection = take_greatest(problem, last, memory.selection, tile.keys);
    const int size = int(selection.taken), first_slot = kept.count;
    for (int i = threadIdx.x; i < size; i += kImageThreads)
      tile.labels[i] = problem.candidate(tile.keys[i], tile.boxes[i]);
    __syncthreads();
    for (int begin = 0; begin < size && kept.count < kept.most; begin += kGroup) {
      const int near_count = min(kept.count, kNearKept);
      settle_group(
          problem, memory, begin, size, kept, kept.count - first_slot,
          [&](int i, int worker) {
            const float4 box = tile.boxes[i];
            const Label label = tile.labels[i];
            bool found = false;
            for (int j = worker; j < near_count && !found; j += kWorkers)
              found = memory.kept_labels[j] == label && overlaps(memory.kept_boxes[j], box, threshold);
            for (int j = worker; j < kept.count - kNearKept && !found; j += kWorkers)
              found = kept.labels[j] == label && overlaps(kept.boxes[j], box, threshold);
            return found;
          },
          [&](int i, int worker) { return suppressor_bits(tile, i, begin + worker * kWorkers, threshold); });
    }
    const Key least = size > 0 ? tile.keys[size - 1] : 0;
    keep_chosen(problem, memory, first_slot, kept.count);
    if (selection.taken == selection.total || kept.count == kept.most) return;
    last = least - 1;
  }
}

// Resolves one image in the block that finished last. Returns the number of kept boxes to all threads.
template <class Problem, class Label>
__device__ int suppress_image(const Problem& problem, const FirstTiles<Label>& first, int64_t image,
                              Kept<Label> kept, float threshold, GreedyMemory<Label>& memory) {
  suppress_first_tile(problem, first, image, kept, memory);
  const unsigned size = first.sizes[image];
  if (size < first.totals[image] && kept.count < kept.most) {
    const Key last = first.keys[image * first.length + size - 1] - 1;
    suppress_further_tiles(problem, last, kept, threshold, memory);
  }
  return kept.count;
}

}  // namespace fcos_fast
