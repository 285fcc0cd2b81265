// Three launches, without synchronization:
//
// 1. filter_kernel reads all logits once, compares them with a bound, and appends the keys of the few candidates to one
// list
//    per segment. A segment is the scope of the top-k: a level of an image, or all levels of an image.
// 2. select_kernel reduces each list to its top-k. If the list has room for all candidates, one block does this.
// Otherwise (at
//    a low threshold) candidates are read from the maps again: one block per part of 16,384 items selects the top-k of
//    the part, and the last of several blocks to finish merges their results, until one is left. If the top-k is by
//    classification, the keys are then converted to keys by score. The last segment of an image sorts its first tile.
// 3. detect_kernel compares and suppresses in descending order: see greedy_nms.h.
#include "../math/postprocess.h"

#include "greedy_nms.h"

namespace fcos_fast {
namespace {

using math::kMaxLevels;
using math::PostprocessRule;
using Label = int32_t;
using PostprocessLevel = math::PostprocessLevel<float>;

constexpr int kPacks = 4;          // packs of 16 bytes per thread of filter_kernel
constexpr uint32_t kPart = 16384;  // maximum number of items, or keys, per top-k block
// Approximate number of blocks of select_kernel: four for each of 132 multiprocessors.
constexpr int64_t kSelectBlocks = 528;

struct Work {
  int levels;
  PostprocessLevel level[kMaxLevels];
  PostprocessRule rule;
  float lowest;                         // logit
  uint32_t first_block[kMaxLevels];     // of filter_kernel, per level
  uint32_t first_part[kMaxLevels + 1];  // per level, and the total number in an image
  int64_t first_key[kMaxLevels + 1];    // per level, in the lists of an image; 0 if the top-k is per image
  uint32_t topk, capacity;              // capacity: of a list; lists of fewer items are shorter
  uint32_t room;                        // capacity for the top-k of a part

  // Segments: the levels of each image in order, or the images.
  uint32_t* counts;      // (segments) number of candidates, including those that did not fit into the list
  Key* lists;            // (B, first_key[levels])
  uint32_t* part_sizes;  // (B, first_part[levels])
  uint32_t* arrived;     // (B, first_part[levels]) finished blocks
  uint32_t* selected;    // (segments) keys selected by select_kernel
  uint32_t* done;        // (B) finished segments

  const float* sizes;      // (B, 2)
  float* boxes;            // (B, max_detections, 4)
  float* scores;           // (B, max_detections)
  int64_t* labels;         // (B, max_detections)
  int64_t* result_counts;  // (B)

  __host__ __device__ int segments_of_image() const { return rule.topk_per_level ? levels : 1; }
  __device__ int64_t segment(int64_t image, int l) const {
    return rule.topk_per_level ? image * levels + l : image;
  }
  __device__ Key* list(int64_t image, int l) const {
    return lists + image * first_key[levels] + first_key[l];
  }
  __host__ __device__ uint32_t items(int l) const {
    return uint32_t(rule.multi_label ? level[l].locations * rule.classes : level[l].locations);
  }
};

static_assert(sizeof(Work) + sizeof(FirstTiles<Label>) + sizeof(Kept<Label>) < 4096,
              "kernel parameters are limited to 4 KiB");

// The last level whose first block (or part) is <= this one.
__device__ __forceinline__ int level_of(uint32_t i, const uint32_t* first, int levels) {
  int l = 0;
  while (l + 1 < levels && i >= first[l + 1]) ++l;
  return l;
}

// ---- candidates ----

// The key of a pair, or 0 if it is not a candidate.
__device__ __forceinline__ Key key_of_pair(const Work& work, int l, int64_t image, uint32_t location,
                                           uint32_t c, float logit) {
  const PostprocessLevel& level = work.level[l];
  const float score = math::score_of_logit(logit, level, image, location, work.rule);
  if (!(score >= 0.0f)) return 0;
  return math::make_key(math::rank_of(score, logit, work.rule),
                        uint32_t((level.first + location) * work.rule.classes + c));
}

// The candidate at a position in the dense memory of a level's logits.
__device__ Key key_at(const Work& work, int l, int64_t image, uint32_t position, float logit) {
  if (!(logit >= work.lowest)) return 0;
  const bool rows = work.level[l].logits.channel_stride == 1;
  const uint32_t inner = uint32_t(rows ? work.rule.classes : work.level[l].locations);
  const uint32_t outer_index = position / inner, inner_index = position - outer_index * inner;
  return rows ? key_of_pair(work, l, image, outer_index, inner_index, logit)
              : key_of_pair(work, l, image, inner_index, outer_index, logit);
}

// The candidate with the greatest logit of a location.
template <class T>
__device__ Key key_of_best(const Work& work, int l, int64_t image, uint32_t location) {
  const math::FeatureMap& map = work.level[l].logits;
  const T* x = static_cast<const T*>(map.data) + image * map.image_stride + location * map.location_stride;
  float best = 0;
  int64_t chosen = -1;
  for (int64_t c = 0; c < work.rule.classes; ++c) {
    const float logit = float(x[c * map.channel_stride]);
    if (logit >= work.lowest && (chosen < 0 || logit > best)) {
      best = logit;
      chosen = c;
    }
  }
  return chosen < 0 ? Key(0) : key_of_pair(work, l, image, location, uint32_t(chosen), best);
}

template <class T>
__device__ __forceinline__ Key key_of_item(const Work& work, int l, int64_t image, uint32_t item) {
  if (!work.rule.multi_label) return key_of_best<T>(work, l, image, item);
  const math::FeatureMap& map = work.level[l].logits;
  const T* x = static_cast<const T*>(map.data) + image * map.image_stride;
  return key_at(work, l, image, item, float(x[item]));
}

// ---- 1: filter ----

// Appends all nonzero keys; called by the whole warp. Returns whether they fit; otherwise the list is not used.
__device__ __forceinline__ bool append(const Work& work, int64_t image, int l, Key key) {
  const unsigned owners = __ballot_sync(kWholeWarp, key != 0);
  if (owners == 0) return true;
  const int lane = threadIdx.x % 32;
  unsigned first = 0;
  if (lane == 0) first = atomicAdd(&work.counts[work.segment(image, l)], unsigned(__popc(owners)));
  first = __shfl_sync(kWholeWarp, first, 0);
  const unsigned place = first + __popc(owners & ((1u << lane) - 1));
  if (key != 0 && place < work.capacity) work.list(image, l)[place] = key;
  return first < work.capacity;
}

template <class T>
__global__ void __launch_bounds__(kThreads) filter_kernel(const __grid_constant__ Work work) {
  constexpr int kElements = 16 / sizeof(T);
  using Elements = Pack<T, kElements>;
  const int l = level_of(blockIdx.x, work.first_block, work.levels);
  const int64_t image = blockIdx.y;
  const math::FeatureMap& map = work.level[l].logits;
  const T* x = static_cast<const T*>(map.data) + image * map.image_stride;
  const int64_t n = work.items(l);
  // Packs start at multiples of 16 bytes; the first and the last may be incomplete.
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
  uint32_t found = 0;  // bit p * kElements + k
#pragma unroll
  for (int p = 0; p < kPacks; ++p) {
#pragma unroll
    for (int k = 0; k < kElements; ++k) {
      if (float(packs[p].v[k]) >= work.lowest) found |= 1u << (p * kElements + k);
    }
  }
  // Rare from here on: each thread processes its candidates one by one, usually with one atomic operation per warp. The
  // logits are read again, so that the packs need not stay in registers.
  bool has_room = true;
  while (has_room && __any_sync(kWholeWarp, found != 0)) {
    Key key = 0;
    if (found != 0) {
      const int bit = __ffs(int(found)) - 1, p = bit / kElements, k = bit % kElements;
      const int64_t at = (first + p * kThreads) * kElements - before + k;
      found &= found - 1;
      if (at >= 0 && at < n) key = key_at(work, l, image, uint32_t(at), float(x[at]));
    }
    has_room = append(work, image, l, key);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) filter_best_kernel(const __grid_constant__ Work work) {
  const int l = level_of(blockIdx.x, work.first_block, work.levels);
  const int64_t image = blockIdx.y;
  const uint32_t location = (blockIdx.x - work.first_block[l]) * kThreads + threadIdx.x;
  append(work, image, l, location < work.items(l) ? key_of_best<T>(work, l, image, location) : 0);
}

// ---- 2: select ----

struct SelectMemory {
  SelectionMemory selection;
  unsigned written;
  Key keys[kTile];
};

// Lists of keys at a constant distance.
struct Runs {
  Key* keys;
  const uint32_t* sizes;
  uint32_t count;
  size_t step, size_step;
};

// Merges the runs into the memory of the first: the greatest keys, at most `most`. Returns their number.
__device__ uint32_t keep_greatest(const Runs& runs, uint32_t most, SelectMemory& memory) {
  const auto source = [&](const auto& f) {
    for (uint32_t r = 0; r < runs.count; ++r) {
      const uint32_t size = runs.sizes[r * runs.size_step];
      for (uint32_t i = threadIdx.x; i < size; i += kImageThreads) f(runs.keys[r * runs.step + i]);
    }
  };
  const Selection selection = select_greatest(source, most, most, memory.selection);
  if (runs.count == 1 && selection.total <= most) return selection.total;
  if (threadIdx.x == 0) memory.written = 0;
  for (uint32_t r = 0; r < runs.count; ++r) {
    const uint32_t size = runs.sizes[r * runs.size_step];
    for (uint32_t begin = 0; begin < size; begin += kImageThreads) {
      const uint32_t i = begin + threadIdx.x;
      const Key key = i < size ? runs.keys[r * runs.step + i] : 0;
      __syncthreads();  // writes never overtake reads
      if (key >= selection.cutoff) runs.keys[atomicAdd(&memory.written, 1u)] = key;
    }
  }
  __syncthreads();
  return memory.written;
}

// Selects the top-k of part `part` of the segment that contains level l of the image. Writes them to `to` and returns
// their number.
template <class T>
__device__ uint32_t select_part(const Work& work, int64_t image, int l, uint32_t part, Key* to,
                                SelectMemory& memory) {
  if (!work.rule.topk_per_level) {
    l = level_of(part, work.first_part, work.levels);
    part -= work.first_part[l];
  }
  const uint32_t first = part * kPart, count = min(kPart, work.items(l) - first);
  const auto source = [&](const auto& f) {
    for (uint32_t i = threadIdx.x; i < count; i += kImageThreads) {
      const Key key = key_of_item<T>(work, l, image, first + i);
      if (key != 0) f(key);
    }
  };
  const Key cutoff = select_greatest(source, work.topk, work.topk, memory.selection).cutoff;
  if (threadIdx.x == 0) memory.written = 0;
  __syncthreads();
  source([&](Key key) {
    if (key >= cutoff) to[atomicAdd(&memory.written, 1u)] = key;
  });
  __syncthreads();
  return memory.written;
}

// Parts are the leaves of a tree. The last of a node's children to finish merges them and continues as the node.
// Returns true in the very last block; then the first `size` keys of the list are the result.
__device__ bool merge_parts(const Work& work, int64_t image, int l, uint32_t part, uint32_t parts, Key* list,
                            uint32_t& size, SelectMemory& memory) {
  const int64_t first =
      image * work.first_part[work.levels] + (work.rule.topk_per_level ? work.first_part[l] : 0);
  uint32_t *sizes = work.part_sizes + first, *arrived = work.arrived + first;
  const uint32_t ways = max(2u, kPart / work.room);
  for (uint32_t span = 1; span < parts; span *= ways) {
    if (threadIdx.x == 0) sizes[part] = size;
    part -= part % (span * ways);
    const uint32_t children = min(ways, (parts - part + span - 1) / span);
    if (children == 1) continue;
    // The entry of the second child's first part is used by no other node.
    if (!is_last_block(&arrived[part + span], children)) return false;
    const Runs runs{list + size_t(part) * work.room, sizes + part, children, size_t(span) * work.room, span};
    size = keep_greatest(runs, work.topk, memory);
  }
  return true;
}

struct DetectedImage {
  using Label = int32_t;
  const Work& work;
  int64_t image;

  template <class F>
  __device__ void each_key(const F& f) const {
    for (int l = 0; l < work.segments_of_image(); ++l) {
      const Key* list = work.list(image, l);
      const uint32_t size = work.selected[work.segment(image, l)];
      for (uint32_t i = threadIdx.x; i < size; i += kImageThreads) f(list[i]);
    }
  }
  __device__ Label read_box(Key key, float box[4]) const {
    const math::Place place = math::place_of(work.level, work.levels, work.rule, math::index_of(key));
    math::decode_box(work.level[place.level], image, place.location, work.rule, box);
    if (work.rule.clip_before_nms) clip(box);
    return Label(place.c);
  }
  __device__ void clip(float box[4]) const { math::clip_box(work.rule, work.sizes + 2 * image, box); }
  __device__ Label candidate(Key key, float4& compared) const {
    float box[4];
    const Label label = read_box(key, box);
    const float last_pixel = work.rule.inclusive_boxes ? 1.0f : 0.0f;
    compared = make_float4(box[0], box[1], box[2] + last_pixel, box[3] + last_pixel);
    return work.rule.class_agnostic ? 0 : label;
  }
  __device__ bool may_be_kept(const float4& b) const {
    const float box[4] = {b.x, b.y, b.z, b.w};
    return math::may_be_kept(work.rule, box);
  }
  __device__ void keep(int64_t slot, Key key) const {
    slot += image * work.rule.max_detections;
    float box[4];
    work.labels[slot] = read_box(key, box);
    if (!work.rule.clip_before_nms) clip(box);
    reinterpret_cast<float4*>(work.boxes)[slot] = make_float4(box[0], box[1], box[2], box[3]);
    work.scores[slot] = math::score_of(key);
  }
};

// Grid: (segment, some of its parts).
template <class T>
__global__ void __launch_bounds__(kImageThreads)
    select_kernel(const __grid_constant__ Work work, const FirstTiles<Label> first) {
  __shared__ SelectMemory memory;
  const int64_t segment = blockIdx.x, image = segment / work.segments_of_image();
  const int l = int(segment - image * work.segments_of_image());
  Key* list = work.list(image, l);
  uint32_t size = 0;
  if (work.counts[segment] <= work.capacity) {
    if (blockIdx.y != 0) return;
    size = keep_greatest({list, &work.counts[segment], 1, 0, 0}, work.topk, memory);
  } else {
    const uint32_t parts =
        work.rule.topk_per_level ? work.first_part[l + 1] - work.first_part[l] : work.first_part[work.levels];
    bool is_last = false;
    for (uint32_t part = blockIdx.y; part < parts; part += gridDim.y) {
      size = select_part<T>(work, image, l, part, list + size_t(part) * work.room, memory);
      is_last = merge_parts(work, image, l, part, parts, list, size, memory);
    }
    if (!is_last) return;
  }
  if (work.rule.topk_by_classification) {
    for (uint32_t i = threadIdx.x; i < size; i += kImageThreads)
      list[i] = math::key_by_score(work.level, work.levels, work.rule, image, list[i]);
  }
  if (threadIdx.x == 0) work.selected[segment] = size;
  if (!is_last_block(&work.done[image], unsigned(work.segments_of_image()))) return;
  sort_first_tile(DetectedImage{work, image}, image, first, memory.selection, memory.keys);
}

// ---- 3: detect ----

// Grid: (image, pairs of groups).
__global__ void __launch_bounds__(kImageThreads, 2)
    detect_kernel(const __grid_constant__ Work work, const FirstTiles<Label> first, const Kept<Label> kept,
                  float threshold) {
  __shared__ GreedyMemory<Label> memory;
  const int64_t image = blockIdx.x, most = work.rule.max_detections;
  compare_first_tile(first, image, int(blockIdx.y), int(gridDim.y), threshold, memory.tile);
  if (!is_last_block(&first.arrived[image], gridDim.y)) return;
  const int count =
      suppress_image(DetectedImage{work, image}, first, image, kept.of(image), threshold, memory);
  for (int64_t slot = image * most + count + threadIdx.x; slot < (image + 1) * most; slot += kImageThreads) {
    reinterpret_cast<float4*>(work.boxes)[slot] = make_float4(0, 0, 0, 0);
    work.scores[slot] = 0;
    work.labels[slot] = -1;
  }
  if (threadIdx.x == 0) work.result_counts[image] = count;
}

// ---- host ----

// Number of blocks of filter_kernel for this many items.
template <class T>
uint32_t filter_blocks(const PostprocessRule& rule, int64_t items) {
  if (items == 0) return 0;
  constexpr int64_t kElements = 16 / sizeof(T), kPerBlock = kThreads * kPacks * kElements;
  // One extra pack, since the first pack may start before the first element.
  return uint32_t(rule.multi_label ? (items + kElements + kPerBlock - 1) / kPerBlock
                                   : (items + kThreads - 1) / kThreads);
}

// Fills the first_... arrays; returns the number of blocks of filter_kernel.
template <class T>
uint32_t lay_out(Work& work) {
  const auto length = [&](int64_t items, int64_t parts) {  // capacity of a list
    return items <= work.capacity ? items : std::max<int64_t>(work.capacity, parts * work.room);
  };
  uint32_t blocks = 0, parts = 0;
  int64_t keys = 0, items = 0;
  for (int l = 0; l < work.levels; ++l) {
    work.first_block[l] = blocks;
    work.first_part[l] = parts;
    work.first_key[l] = keys;
    const int64_t own = work.items(l), own_parts = (own + kPart - 1) / kPart;
    blocks += filter_blocks<T>(work.rule, own);
    parts += uint32_t(own_parts);
    items += own;
    if (work.rule.topk_per_level) keys += length(own, own_parts);
  }
  work.first_part[work.levels] = parts;
  work.first_key[work.levels] = work.rule.topk_per_level ? keys : length(items, parts);
  return blocks;
}

template <class T>
void run(const Cuda& device, const PostprocessWork& arguments) {
  const cudaStream_t stream = stream_of(device);
  const int64_t batch = arguments.batch;
  Work work{};
  work.levels = int(arguments.levels.size());
  std::transform(arguments.levels.begin(), arguments.levels.end(), work.level, math::with_float32);
  work.rule = arguments.rule;
  work.lowest = float(math::lowest_logit(work.rule));
  work.topk = uint32_t(work.rule.topk);
  work.capacity = std::max(kPart, work.topk);
  work.room = std::min(kPart, work.topk);
  work.sizes = static_cast<const float*>(arguments.sizes);
  work.boxes = static_cast<float*>(arguments.boxes);
  work.scores = static_cast<float*>(arguments.scores);
  work.labels = arguments.labels;
  work.result_counts = arguments.counts;

  const uint32_t blocks = lay_out<T>(work);
  const int64_t segments = batch * work.segments_of_image(), parts = work.first_part[work.levels];
  const int64_t counters = segments + batch * parts + batch;
  work.counts = device.scratch<uint32_t>(counters);
  work.arrived = work.counts + segments;
  work.done = work.arrived + batch * parts;
  check_cuda(cudaMemsetAsync(work.counts, 0, counters * sizeof *work.counts, stream));
  work.part_sizes = device.scratch<uint32_t>(batch * parts);
  work.selected = device.scratch<uint32_t>(segments);
  work.lists = device.scratch<Key>(batch * work.first_key[work.levels]);

  if (blocks > 0) {
    const dim3 grid{blocks, unsigned(batch)};
    if (work.rule.multi_label) {
      filter_kernel<T><<<grid, kThreads, 0, stream>>>(work);
    } else {
      filter_best_kernel<T><<<grid, kThreads, 0, stream>>>(work);
    }
    check_launch();
  }
  const FirstTiles<Label> first(device, batch, work.segments_of_image() * work.rule.topk);
  const dim3 select_grid{unsigned(segments),
                         unsigned(std::max<int64_t>(1, std::min<int64_t>(parts, kSelectBlocks / segments)))};
  select_kernel<T><<<select_grid, kImageThreads, 0, stream>>>(work, first);
  check_launch();
  const dim3 detect_grid{unsigned(batch), unsigned(first.compare_blocks(batch))};
  const Kept<Label> kept(device, batch, work.rule.max_detections);
  detect_kernel<<<detect_grid, kImageThreads, 0, stream>>>(work, first, kept,
                                                           math::round_down(work.rule.iou_threshold));
  check_launch();
}

}  // namespace

void run_postprocess(Cuda device, const PostprocessWork& work) {
  dispatch_to_float32(work.rule.logits_dtype, [&](auto element) { run<decltype(element)>(device, work); });
}

}  // namespace fcos_fast
