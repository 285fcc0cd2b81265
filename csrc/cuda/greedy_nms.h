// What one block does with the keys of one image: find those of the greatest scores, sort them, suppress greedily.
//
// Greedy suppression keeps boxes in falling order, and only the kept ones matter: nothing is compared but candidates with
// kept boxes, and within a group of 64 each with each. Keys are sorted a tile at a time, so an early end saves the rest.
// Results depend on the keys alone, not on the order in which threads meet them.
#pragma once

#include "../math/nms.h"
#include "launch.h"

namespace fcos_fast {

constexpr int kGroup = 64;   // candidates that are settled together
constexpr int kWorkers = 8;  // neighbouring threads that compare one of them
constexpr int kImageThreads =
    kGroup * kWorkers;                    // of the one block of an image; one fits on a multiprocessor
constexpr int kTile = 2 * kImageThreads;  // keys that are sorted together
constexpr unsigned kWholeWarp = 0xffffffffu;

// ---- selection ----

template <class Key>
struct Selection {
  Key cutoff;      // the keys from here on
  unsigned total;  // number of all keys
};

struct SelectionMemory {
  unsigned histogram[256];
  unsigned long long least, greatest;  // scores
  unsigned total, above;
  int digit;
};

// Counts the keys and finds the range of their scores.
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

// The digit at which the count of keys, from the greatest digit on, first exceeds `wanted`; `above` keys have a greater
// one. For the first warp.
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
  if (upto > wanted && upto - own <= wanted) {  // true of one lane
    unsigned above = upto - own;
    int digit = first;
    while (above + memory.histogram[digit] <= wanted) above += memory.histogram[digit--];
    memory.above = above;
    memory.digit = digit;
  }
}

// Of the keys that source(f) hands to f, all threads of the block together: a cutoff from which on there are at most
// `most`, and at least `least` where there are that many. Radix selection from the highest bit in which scores differ.
template <class Key, class Source>
__device__ Selection<Key> select_greatest(const Source& source, unsigned most, unsigned least,
                                          SelectionMemory& memory) {
  constexpr int kDigit = 8;
  survey(source, memory);
  const unsigned total = memory.total;
  if (total <= most) return {1, total};

  const unsigned long long differing = memory.least ^ memory.greatest;
  // The digit of the highest bit that differs; what is above it is common to all keys.
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
    // No two keys are equal: the digit at shift 0 leaves nothing to choose.
    if (above >= least) return {prefix + (Key(memory.digit + 1) << shift), total};
    prefix |= Key(memory.digit) << shift;
  }
}

// ---- sorting ----

// Bitonic sort of keys in shared memory, greatest first; the memory has room for the next power of two.
template <class Key>
__device__ void sort_falling(Key* keys, int count) {
  int padded = 1;
  while (padded < count) padded *= 2;
  for (int i = count + threadIdx.x; i < padded; i += blockDim.x) keys[i] = 0;
  __syncthreads();
  for (int size = 2; size <= padded; size *= 2) {
    for (int stride = size / 2; stride > 0; stride /= 2) {
      for (int pair = threadIdx.x; pair < padded / 2; pair += blockDim.x) {
        const int low = 2 * pair - (pair & (stride - 1));
        const Key a = keys[low], b = keys[low + stride];
        const bool falling = (low & size) == 0;
        if ((a < b) == falling) {
          keys[low] = b;
          keys[low + stride] = a;
        }
      }
      __syncthreads();
    }
  }
}

// ---- suppression ----

template <class Real>
struct Candidate {
  Real box[5];  // x1, y1, x2, y2, area
  int64_t label;
};

template <class Real>
__device__ __forceinline__ bool suppresses(const Candidate<Real>& a, const Candidate<Real>& b,
                                           Real threshold) {
  return a.label == b.label && math::overlaps(a.box, b.box, threshold);
}

template <class Real, class Key>
struct GreedyMemory {
  SelectionMemory selection;
  Key tile[kTile];
  int tile_size;
  Candidate<Real> group[kGroup];
  unsigned char suppressed[kGroup];
  unsigned long long suppresses[kGroup];  // bit k: candidate k of the group, a later one
  unsigned long long kept;
};

// Settles candidates [0, size) of the group against the boxes kept before and against each other; bits of those to keep.
template <class Real, class Key>
__device__ unsigned long long settle_group(GreedyMemory<Real, Key>& memory, int size,
                                           const Candidate<Real>* kept, int64_t count, int64_t most,
                                           Real threshold) {
  const int i = threadIdx.x / kWorkers, worker = threadIdx.x % kWorkers;
  // One thread alone reads what it overwrites below; a vote is no barrier for memory.
  bool is_suppressed = i >= size || (worker == 0 && memory.suppressed[i]);
  unsigned bits = 0;
  if (i < size) {
    const Candidate<Real> own = memory.group[i];
    // Kept boxes are few and read by all threads in step: the first cache serves them as shared memory would, and holds
    // any number.
    for (int64_t j = worker; j < count && !is_suppressed; j += kWorkers)
      is_suppressed = suppresses(kept[j], own, threshold);
    const int first = worker * kWorkers;
    for (int k = 0; k < kWorkers; ++k) {
      const int other = first + k;
      if (other > i && other < size && suppresses(own, memory.group[other], threshold)) bits |= 1u << k;
    }
  }
  reinterpret_cast<unsigned char*>(&memory.suppresses[i])[worker] = (unsigned char)bits;
  const unsigned votes = __ballot_sync(kWholeWarp, is_suppressed);
  if (worker == 0) memory.suppressed[i] = i >= size || (votes >> (threadIdx.x % 32) & 0xffu) != 0;
  __syncthreads();
  if (threadIdx.x < 32) {
    const unsigned low = __ballot_sync(kWholeWarp, !memory.suppressed[threadIdx.x]);
    const unsigned high = __ballot_sync(kWholeWarp, !memory.suppressed[threadIdx.x + 32]);
    unsigned long long alive = (unsigned long long)high << 32 | low, chosen = 0;
    while (alive != 0 && count + __popcll(chosen) < most) {
      const int best = __ffsll((long long)alive) - 1;
      chosen |= 1ull << best;
      alive &= ~(memory.suppresses[best] | 1ull << best);
    }
    if (threadIdx.x == 0) memory.kept = chosen;
  }
  __syncthreads();
  return memory.kept;
}

// Problem: Real, Key; each_key(f) hands all keys of the image to f, the threads of the block sharing them;
// candidate(key); may_be_kept(candidate); keep(slot, key) writes a result. Returns the number of kept boxes to all threads.
// `kept` is scratch memory of `most` candidates.
template <class Problem>
__device__ int64_t suppress_image(const Problem& problem, Candidate<typename Problem::Real>* kept,
                                  int64_t most, typename Problem::Real threshold,
                                  GreedyMemory<typename Problem::Real, typename Problem::Key>& memory) {
  using Key = typename Problem::Key;
  static_assert(kWorkers == 8 && kGroup == 64, "a byte of the group's 64 bits per worker");
  Key last = ~Key(0);
  int64_t count = 0;
  for (;;) {
    const auto remaining = [&](const auto& f) {
      problem.each_key([&](Key key) {
        if (key <= last) f(key);
      });
    };
    const auto selection = select_greatest<Key>(remaining, kTile, kTile / 2, memory.selection);
    if (threadIdx.x == 0) memory.tile_size = 0;
    __syncthreads();
    remaining([&](Key key) {
      if (key >= selection.cutoff) memory.tile[atomicAdd(&memory.tile_size, 1)] = key;
    });
    __syncthreads();
    const int size = memory.tile_size;
    sort_falling(memory.tile, size);
    for (int begin = 0; begin < size; begin += kGroup) {
      const int group = min(kGroup, size - begin);
      if (threadIdx.x < group) {
        memory.group[threadIdx.x] = problem.candidate(memory.tile[begin + threadIdx.x]);
        memory.suppressed[threadIdx.x] = !problem.may_be_kept(memory.group[threadIdx.x]);
      }
      __syncthreads();
      const auto chosen = settle_group(memory, group, kept, count, most, threshold);
      if (threadIdx.x < kGroup && (chosen >> threadIdx.x & 1)) {
        const int64_t slot = count + __popcll(chosen & ((1ull << threadIdx.x) - 1));
        kept[slot] = memory.group[threadIdx.x];
        problem.keep(slot, memory.tile[begin + threadIdx.x]);
      }
      count += __popcll(chosen);
      __syncthreads();  // `kept` and the group
      if (count >= most) return count;
    }
    if (unsigned(size) == selection.total) return count;
    last = memory.tile[size - 1] - 1;
  }
}

}  // namespace fcos_fast
