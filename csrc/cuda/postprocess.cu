// Three launches, and no number that the host would have to know:
//
// 1. filter_kernel reads all logits once, compares them with one bound, and appends the keys of the few candidates to a
//    list per segment: a level of an image, or all levels of an image, whichever the top-k is over.
// 2. select_kernel, one block per segment, finds the key where the top-k ends. Where a list was too short for the
//    candidates, it takes them from the maps again and leaves just the top-k in the list. Where the top-k is of the
//    classifications, it replaces their keys by those of the scores.
// 3. detect_kernel, one block per image, decodes and suppresses the selected keys in falling order.
#include "../math/postprocess.h"

#include "greedy_nms.h"

namespace fcos_fast {
namespace {

using math::kMaxLevels;
using math::PostprocessLevel;
using math::PostprocessRule;

constexpr int kPacks = 4;               // of 16 bytes that a thread of filter_kernel reads
constexpr int64_t kListLength = 16384;  // keys of a segment that are not worth reading the maps again

template <class RealType>
struct Work {
  using Real = RealType;
  using Key = math::key_t<Real>;
  int levels;
  uint32_t first_block[kMaxLevels];  // of filter_kernel, by level
  PostprocessLevel level[kMaxLevels];
  PostprocessRule rule;
  Real lowest;  // logit
  uint32_t topk, capacity;
  uint32_t* counts;  // candidates by segment, also those that found no place in the list
  Key* lists;        // (segments, capacity)
  Key* cutoffs;      // by segment: where the top-k ends

  __device__ int64_t segment(int64_t image, int l) const {
    return rule.topk_per_level ? image * levels + l : image;
  }
  __device__ uint32_t items(int l) const {
    return uint32_t(rule.multi_label ? level[l].locations * rule.classes : level[l].locations);
  }
};

static_assert(sizeof(Work<double>) < 4096, "a kernel's parameters end at 4 KiB");

// ---- candidates ----

// The key of a pair, or 0 if it is no candidate.
template <class Real>
__device__ __forceinline__ math::key_t<Real> key_of_pair(const Work<Real>& work, int l, int64_t image,
                                                         uint32_t location, uint32_t c, Real logit) {
  const PostprocessLevel& level = work.level[l];
  const Real score = math::score_of_logit(logit, level, image, location, work.rule);
  if (!(score >= Real(0))) return 0;
  return math::make_key(math::rank_of(score, logit, work.rule),
                        uint32_t((level.first + location) * work.rule.classes + c));
}

// Of a position in the dense memory of a level's logits.
template <class Real>
__device__ math::key_t<Real> key_at(const Work<Real>& work, int l, int64_t image, uint32_t position,
                                    Real logit) {
  if (!(logit >= work.lowest)) return 0;
  const bool rows = work.level[l].logits.channel_stride == 1;
  const uint32_t inner = uint32_t(rows ? work.rule.classes : work.level[l].locations);
  const uint32_t outer_index = position / inner, inner_index = position - outer_index * inner;
  return rows ? key_of_pair(work, l, image, outer_index, inner_index, logit)
              : key_of_pair(work, l, image, inner_index, outer_index, logit);
}

// Of the class of the greatest logit.
template <class T, class Real>
__device__ math::key_t<Real> key_of_best(const Work<Real>& work, int l, int64_t image, uint32_t location) {
  const math::FeatureMap& map = work.level[l].logits;
  const T* x = static_cast<const T*>(map.data) + image * map.image_stride + location * map.location_stride;
  Real best = 0;
  int64_t chosen = -1;
  for (int64_t c = 0; c < work.rule.classes; ++c) {
    const Real logit = Real(x[c * map.channel_stride]);
    if (logit >= work.lowest && (chosen < 0 || logit > best)) {
      best = logit;
      chosen = c;
    }
  }
  return chosen < 0 ? math::key_t<Real>(0) : key_of_pair(work, l, image, location, uint32_t(chosen), best);
}

template <class T, class Real>
__device__ __forceinline__ math::key_t<Real> key_of_item(const Work<Real>& work, int l, int64_t image,
                                                         uint32_t item) {
  if (!work.rule.multi_label) return key_of_best<T>(work, l, image, item);
  const math::FeatureMap& map = work.level[l].logits;
  return key_at(work, l, image, item,
                Real((static_cast<const T*>(map.data) + image * map.image_stride)[item]));
}

// ---- 1: filter ----

// Appends the keys that are not 0; the whole warp calls it.
template <class Real>
__device__ __forceinline__ void append(const Work<Real>& work, int64_t segment, math::key_t<Real> key) {
  const unsigned owners = __ballot_sync(kWholeWarp, key != 0);
  if (owners == 0) return;
  const int lane = threadIdx.x % 32;
  unsigned first = 0;
  if (lane == 0) first = atomicAdd(&work.counts[segment], unsigned(__popc(owners)));
  const unsigned place = __shfl_sync(kWholeWarp, first, 0) + __popc(owners & ((1u << lane) - 1));
  if (key != 0 && place < work.capacity) work.lists[segment * work.capacity + place] = key;
}

template <class Real>
__device__ __forceinline__ int level_of_block(const Work<Real>& work) {
  int l = 0;
  while (l + 1 < work.levels && blockIdx.x >= work.first_block[l + 1]) ++l;
  return l;
}

template <class T, class Real>
__global__ void __launch_bounds__(kThreads) filter_kernel(const __grid_constant__ Work<Real> work) {
  constexpr int kElements = 16 / sizeof(T);
  using Elements = Pack<T, kElements>;
  const int l = level_of_block(work);
  const int64_t image = blockIdx.y, segment = work.segment(image, l);
  const math::FeatureMap& map = work.level[l].logits;
  const T* x = static_cast<const T*>(map.data) + image * map.image_stride;
  const int64_t n = work.items(l);
  // Packs lie at multiples of 16 bytes; the first and the last may be incomplete.
  const int64_t before = int64_t(reinterpret_cast<uintptr_t>(x) % 16 / sizeof(T));
  const int64_t first = int64_t(blockIdx.x - work.first_block[l]) * kThreads * kPacks + threadIdx.x;
  Elements packs[kPacks];
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
    const int64_t begin = (first + p * kThreads) * kElements - before;
    if (begin >= 0 && begin + kElements <= n) {
      packs[p] = *reinterpret_cast<const Elements*>(x + begin);
    } else {
#pragma unroll
      for (int k = 0; k < kElements; ++k) {
        const bool exists = begin + k >= 0 && begin + k < n;
        packs[p].v[k] = exists ? x[begin + k] : T(-INFINITY);
      }
    }
  }
  unsigned found = 0;  // bit p: of pack p
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
#pragma unroll
    for (int k = 0; k < kElements; ++k) {
      if (Real(packs[p].v[k]) >= work.lowest) found |= 1u << p;
    }
  }
  // Rare from here on: the logits are read again, and the packs need no register.
#pragma unroll 1
  for (int p = 0; p < kPacks; ++p) {
    if (!__any_sync(kWholeWarp, found >> p & 1)) continue;
    const int64_t begin = (first + p * kThreads) * kElements - before;
#pragma unroll 1
    for (int k = 0; k < kElements; ++k) {
      const bool exists = begin + k >= 0 && begin + k < n;
      append(work, segment, exists ? key_at(work, l, image, uint32_t(begin + k), Real(x[begin + k])) : 0);
    }
  }
}

template <class T, class Real>
__global__ void __launch_bounds__(kThreads) filter_best_kernel(const __grid_constant__ Work<Real> work) {
  const int l = level_of_block(work);
  const int64_t image = blockIdx.y;
  const uint32_t location = (blockIdx.x - work.first_block[l]) * kThreads + threadIdx.x;
  const bool exists = location < work.items(l);
  append(work, work.segment(image, l), exists ? key_of_best<T>(work, l, image, location) : 0);
}

// ---- 2: select ----

// All candidates of a segment, from the maps.
template <class T, class Real, class F>
__device__ void each_candidate(const Work<Real>& work, int64_t segment, const F& f) {
  const int64_t image = work.rule.topk_per_level ? segment / work.levels : segment;
  const int own = int(segment - image * work.levels);
  const int begin = work.rule.topk_per_level ? own : 0,
            end = work.rule.topk_per_level ? own + 1 : work.levels;
  for (int l = begin; l < end; ++l) {
    const uint32_t items = work.items(l);
    for (int64_t item = threadIdx.x; item < items; item += blockDim.x) {
      const auto key = key_of_item<T>(work, l, image, uint32_t(item));
      if (key != 0) f(key);
    }
  }
}

template <class T, class Real>
__global__ void __launch_bounds__(kImageThreads, 1) select_kernel(const __grid_constant__ Work<Real> work) {
  using Key = math::key_t<Real>;
  __shared__ SelectionMemory memory;
  __shared__ unsigned written;
  const int64_t segment = blockIdx.x;
  unsigned count = work.counts[segment];
  Key* list = work.lists + segment * work.capacity;
  Key cutoff = 1;
  if (count > work.capacity) {
    const auto source = [&](const auto& f) { each_candidate<T>(work, segment, f); };
    cutoff = select_greatest<Key>(source, work.topk, work.topk, memory).cutoff;
    if (threadIdx.x == 0) written = 0;
    __syncthreads();
    source([&](Key key) {
      if (key >= cutoff) list[atomicAdd(&written, 1u)] = key;
    });
    __syncthreads();
    count = written;
    if (threadIdx.x == 0) work.counts[segment] = count;
  } else if (count > work.topk) {
    const auto source = [&](const auto& f) {
      for (unsigned i = threadIdx.x; i < count; i += blockDim.x) f(list[i]);
    };
    cutoff = select_greatest<Key>(source, work.topk, work.topk, memory).cutoff;
  }
  if (work.rule.topk_by_classification) {
    const int64_t image = work.rule.topk_per_level ? segment / work.levels : segment;
    __syncthreads();
    for (unsigned i = threadIdx.x; i < count; i += blockDim.x) {
      list[i] =
          list[i] >= cutoff ? math::key_by_score(work.level, work.levels, work.rule, image, list[i]) : Key(0);
    }
    cutoff = 1;
  }
  if (threadIdx.x == 0) work.cutoffs[segment] = cutoff;
}

// ---- 3: detect ----

template <class RealType>
struct DetectedImage {
  using Real = RealType;
  using Key = math::key_t<Real>;
  const Work<Real>& work;
  int64_t image;
  const Real* size;
  Real* boxes;  // results of this image
  Real* scores;
  int64_t* labels;

  template <class F>
  __device__ void each_key(const F& f) const {
    const int64_t per_image = work.rule.topk_per_level ? work.levels : 1;
    for (int64_t segment = image * per_image; segment < (image + 1) * per_image; ++segment) {
      const Key* list = work.lists + segment * work.capacity;
      const Key cutoff = work.cutoffs[segment];
      const unsigned count = work.counts[segment];
      for (unsigned i = threadIdx.x; i < count; i += blockDim.x) {
        if (list[i] >= cutoff) f(list[i]);
      }
    }
  }
  __device__ int64_t read_box(Key key, Real box[4]) const {  // returns the label
    const math::Place place = math::place_of(work.level, work.levels, work.rule, math::index_of(key));
    math::decode_box(work.level[place.level], image, place.location, work.rule, box);
    if (work.rule.clip_before_nms) math::clip_box(work.rule, size, box);
    return place.c;
  }
  __device__ Candidate<Real> candidate(Key key) const {
    Real box[4];
    const int64_t label = read_box(key, box);
    const Real last_pixel = work.rule.inclusive_boxes ? Real(1) : Real(0);
    const Real x2 = box[2] + last_pixel, y2 = box[3] + last_pixel;
    return {{box[0], box[1], x2, y2, math::box_area(box[0], box[1], x2, y2)},
            work.rule.class_agnostic ? 0 : label};
  }
  __device__ bool may_be_kept(const Candidate<Real>& c) const { return math::may_be_kept(work.rule, c.box); }
  __device__ void keep(int64_t slot, Key key) const {
    labels[slot] = read_box(key, boxes + 4 * slot);
    if (!work.rule.clip_before_nms) math::clip_box(work.rule, size, boxes + 4 * slot);
    scores[slot] = math::score_of(key);
  }
};

template <class Real>
struct Results {
  Real* boxes;
  Real* scores;
  int64_t* labels;
  int64_t* counts;
};

template <class Real>
__global__ void __launch_bounds__(kImageThreads, 1)
    detect_kernel(const __grid_constant__ Work<Real> work, const Real* sizes, Real threshold, int64_t most,
                  Candidate<Real>* kept, Results<Real> out) {
  __shared__ GreedyMemory<Real, math::key_t<Real>> memory;
  const int64_t image = blockIdx.x, first = image * most;
  const DetectedImage<Real> problem{
      work, image, sizes + 2 * image, out.boxes + 4 * first, out.scores + first, out.labels + first};
  const int64_t count = suppress_image(problem, kept + first, most, threshold, memory);
  for (int64_t slot = count + threadIdx.x; slot < most; slot += blockDim.x) {
    for (int side = 0; side < 4; ++side) problem.boxes[4 * slot + side] = 0;
    problem.scores[slot] = 0;
    problem.labels[slot] = -1;
  }
  if (threadIdx.x == 0) out.counts[image] = count;
}

// ---- the host's part ----

// Blocks of filter_kernel by level; returns how many there are in all.
template <class T, class Real>
int64_t lay_out_blocks(Work<Real>& work) {
  int64_t blocks = 0;
  for (int l = 0; l < work.levels; ++l) {
    work.first_block[l] = uint32_t(blocks);
    const PostprocessLevel& level = work.level[l];
    if (work.rule.multi_label) {
      constexpr int64_t kElements = 16 / sizeof(T), kPerBlock = kThreads * kPacks * kElements;
      // One pack more, as the first one need not begin at the first element.
      if (level.locations > 0)
        blocks += (level.locations * work.rule.classes + kElements + kPerBlock - 1) / kPerBlock;
    } else {
      blocks += (level.locations + kThreads - 1) / kThreads;
    }
  }
  return blocks;
}

template <class T>
void run(const Cuda& device, const PostprocessWork& arguments) {
  using Real = compute_t<T>;
  using Key = math::key_t<Real>;
  const cudaStream_t stream = stream_of(device);
  const PostprocessRule& rule = arguments.rule;
  Work<Real> work{};
  work.levels = int(arguments.levels.size());
  std::copy(arguments.levels.begin(), arguments.levels.end(), work.level);
  work.rule = rule;
  work.lowest = Real(math::lowest_logit(rule));
  int64_t items = 0;  // at most, of a segment
  for (const PostprocessLevel& level : arguments.levels) {
    const int64_t own = level.locations * (rule.multi_label ? rule.classes : 1);
    items = rule.topk_per_level ? std::max(items, own) : items + own;
  }
  work.topk = uint32_t(rule.topk);
  work.capacity = uint32_t(std::min<int64_t>(items, std::max<int64_t>(kListLength, work.topk)));
  const int64_t segments = arguments.batch * (rule.topk_per_level ? work.levels : 1);
  work.counts = device.scratch<uint32_t>(segments);
  check_cuda(cudaMemsetAsync(work.counts, 0, segments * sizeof *work.counts, stream));
  work.lists = device.scratch<Key>(segments * work.capacity);
  work.cutoffs = device.scratch<Key>(segments);

  const int64_t blocks = lay_out_blocks<T>(work);
  if (items > 0) {
    const dim3 grid{unsigned(blocks), unsigned(arguments.batch)};
    if (rule.multi_label) {
      filter_kernel<T><<<grid, kThreads, 0, stream>>>(work);
    } else {
      filter_best_kernel<T><<<grid, kThreads, 0, stream>>>(work);
    }
    check_launch();
  }
  select_kernel<T><<<unsigned(segments), kImageThreads, 0, stream>>>(work);
  check_launch();
  const Results<Real> results{static_cast<Real*>(arguments.boxes), static_cast<Real*>(arguments.scores),
                              arguments.labels, arguments.counts};
  auto* kept = device.scratch<Candidate<Real>>(arguments.batch * rule.max_detections);
  detect_kernel<Real><<<unsigned(arguments.batch), kImageThreads, 0, stream>>>(
      work, static_cast<const Real*>(arguments.sizes), math::round_down(rule.iou_threshold),
      rule.max_detections, kept, results);
  check_launch();
}

}  // namespace

void run_postprocess(Cuda device, const PostprocessWork& work) {
  dispatch_to_float32(work.rule.logits_dtype, [&](auto element) { run<decltype(element)>(device, work); });
}

}  // namespace fcos_fast
