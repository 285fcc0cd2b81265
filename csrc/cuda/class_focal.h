// One pass of the focal loss with class targets over a map of logits. Every element is treated as background. In the
// few packs with other elements, these are replaced by a logit of -inf, which has neither loss nor gradient; foreground
// elements are processed one by one afterwards.
#pragma once

#include "../math/label.h"
#include "background.h"
#include "launch.h"
#include "vector.h"

namespace fcos_fast {

enum class Want { kElements, kSum, kGrad, kGradOfElements, kSumAndGrad };

constexpr bool sums(Want want) { return want == Want::kSum || want == Want::kSumAndGrad; }

constexpr int kFocalThreads = 256, kSumThreads = 1024;
constexpr int kPacksPerThread = 8;  // few enough for a float32 sum per thread

template <class T>
struct ClassMap {
  const T* __restrict__ x;  // (images, classes, locations), or (images, locations, classes) if channels_last
  const T* __restrict__ upstream;  // like x
  T* __restrict__ out;             // like x: losses or their gradient
  ClassLabels labels;              // (images, label_stride), of which the first `locations` are used
  int64_t images, locations, label_stride;
  int32_t classes;
  bool channels_last;
  // The distance between two packs of a thread: whole rows (in bytes of labels) plus some elements. See prepare_rows.
  uint32_t label_bytes_per_step;
  int32_t elements_per_step;
};

// Elements per access: 16 bytes, unless a pack would span two planes or more than two rows.
template <class T>
__host__ __device__ int pack_of(const ClassMap<T>& map) {
  constexpr int N = Vector<T>::kSize;
  return (map.channels_last ? map.classes >= N : map.locations % N == 0) ? N : 1;
}
__host__ __device__ inline int64_t class_runs_of(int64_t classes) {
  return (classes + kPacksPerThread - 1) / kPacksPerThread;
}
// A thread's work on planes: the same pack of locations in consecutive classes.
template <class T>
__host__ __device__ int64_t plane_items(const ClassMap<T>& map) {
  return map.locations / pack_of(map) * class_runs_of(map.classes) * map.images;
}
template <class T>
__host__ __device__ int64_t row_tiles_per_image(const ClassMap<T>& map) {
  const int64_t elements = int64_t(kFocalThreads) * kPacksPerThread * pack_of(map);
  return (map.locations * map.classes + elements - 1) / elements;
}

// Precomputed on the host; the kernel would compute these again for each pack.
template <class T>
void prepare_rows(ClassMap<T>& map) {
  const int32_t step = kFocalThreads * pack_of(map);
  const int32_t rows = map.classes == 0 ? 0 : step / map.classes;
  map.label_bytes_per_step = rows * map.labels.size;
  map.elements_per_step = step - rows * map.classes;
}

// Number of blocks.
template <class T>
int64_t focal_tiles(const ClassMap<T>& map) {
  if (map.channels_last) return row_tiles_per_image(map) * map.images;
  return (plane_items(map) + kFocalThreads - 1) / kFocalThreads;
}

// Avoids the slow 64-bit division for numbers that fit into 32 bits.
__device__ __forceinline__ int64_t divide(int64_t a, int64_t b) {
  return (a | b) <= 0xffffffffll ? int64_t(uint32_t(a) / uint32_t(b)) : a / b;
}

// Elements of a pack that are not background: bits 0-15 mark foreground elements, bits 16-31 ignored ones.
struct Marks {
  uint32_t bits = 0;

  __device__ void add(int i, int32_t label, int32_t class_of_element) {
    bits |= uint32_t(label == class_of_element) << i | uint32_t(label == kIgnoredLabel) << (16 + i);
  }
  __device__ uint32_t any() const { return (bits | bits >> 16) & 0xffffu; }
};

template <class V>
__device__ __forceinline__ void hide(V& x, uint32_t marked) {
#pragma unroll
  for (int i = 0; i < V::kSize; ++i) {
    if (marked >> i & 1) x.set(i, -INFINITY);
  }
}

// Computes losses and gradients of elements of one image, for one thread.
template <class T, class Form, Want Wanted>
class FocalPass {
 public:
  // `scale` multiplies loss and gradient.
  __device__ FocalPass(const ClassMap<T>& map, const Form& form, float scale)
      : map_(map), background_{form}, scale_(scale), factor_(form.negative_weight * scale) {}

  // Processes the elements at `from` and writes to `to`. Marked elements of x must be -inf already.
  template <class V>
  __device__ __forceinline__ void run(const T* from, T* to, const V& x, const Marks& marks) {
    V upstream;
    if constexpr (Wanted == Want::kGradOfElements) upstream = load<V>(upstream_of(from));
    float results[V::kSize];
#pragma unroll
    for (int i = 0; i < V::kSize; ++i) {
      const FocalTerms terms = background_(x[i]);
      if constexpr (sums(Wanted)) {
        background_loss_ = math::fma(terms.modulation, terms.cross_entropy, background_loss_);
      }
      results[i] = result(terms, Wanted == Want::kGradOfElements ? factor_ * upstream[i] : factor_);
    }
    if constexpr (Wanted != Want::kSum) store(to, V::of(results));
    for (uint32_t left = marks.bits; left != 0; left &= left - 1) {
      const int bit = __ffs(left) - 1, i = bit % 16;
      run_marked(from + i, to + i, bit < 16);
    }
  }

  // Sum over the elements so far.
  __device__ double loss() const {
    const Form& form = background_.form;
    return double(scale_) * (double(weighted(background_loss_, form.negative_weight)) +
                             double(weighted(foreground_loss_, form.positive_weight)));
  }

 private:
  __device__ const T* upstream_of(const T* from) const { return map_.upstream + (from - map_.x); }

  // A weight of 0 makes any loss 0 except NaN.
  __device__ __forceinline__ static float weighted(float loss, float weight) {
    constexpr float kGreatest = 3.40282347e38f;
    return loss >= kGreatest ? (weight == 0.0f ? 0.0f : INFINITY) : loss * weight;
  }

  __device__ __forceinline__ static float result(const FocalTerms& terms, float factor) {
    if constexpr (Wanted == Want::kElements) return weighted(terms.modulation * terms.cross_entropy, factor);
    return terms.modulation * factor * terms.slope;
  }

  __device__ void run_marked(const T* from, T* to, bool foreground) {
    float value = 0;  // ignored elements: 0 for any incoming gradient
    if (foreground) {
      FocalTerms terms = background_(-float(*from));
      terms.slope = -terms.slope;
      if constexpr (sums(Wanted)) foreground_loss_ += terms.modulation * terms.cross_entropy;
      float factor = background_.form.positive_weight * scale_;
      if constexpr (Wanted == Want::kGradOfElements) factor *= float(*upstream_of(from));
      value = result(terms, factor);
    }
    if constexpr (Wanted != Want::kSum) store(to, Single<T>{T(value)});
  }

  const ClassMap<T>& map_;
  const Background<T, Form> background_;
  const float scale_, factor_;
  float background_loss_ = 0, foreground_loss_ = 0;
};

// ---- planes ----

// Packs of locations, in the classes [first, last) of an image.
template <class V, class T, class Pass>
__device__ __forceinline__ void run_planes(Pass& pass, const ClassMap<T>& map, int64_t image,
                                           int64_t location, int32_t first, int32_t last) {
  const ClassLabels labels = map.labels + (image * map.label_stride + location);
  uint32_t marked = 0;  // bit c: class `first` + c has elements that are not background
#pragma unroll
  for (int i = 0; i < V::kSize; ++i) {
    const int32_t label = labels[i];
    if (label == kIgnoredLabel) marked = ~0u;
    if (label >= first && label < last) marked |= 1u << (label - first);
  }
  const int64_t begin = (image * map.classes + first) * map.locations + location;
  const T* from = map.x + begin;
  T* to = map.out + begin;
#pragma unroll 1
  for (int32_t c = first; c < last; ++c, marked >>= 1, from += map.locations, to += map.locations) {
    V x = load<V>(from);
    Marks marks;
    if (marked & 1) {
#pragma unroll 1
      for (int i = 0; i < V::kSize; ++i) marks.add(i, labels[i], c);
      hide(x, marks.any());
    }
    pass.run(from, to, x, marks);
  }
}

template <Want Wanted, class V, class T, class Form, class ScaleOf>
__device__ __forceinline__ double plane_item(const ClassMap<T>& map, int64_t item, const Form& form,
                                             const ScaleOf& scale_of) {
  const int64_t packs = map.locations / V::kSize, class_runs = class_runs_of(map.classes);
  const int64_t row = divide(item, packs), image = divide(row, class_runs);
  const int32_t first = int32_t(row - image * class_runs) * kPacksPerThread;
  const int32_t last = min(first + kPacksPerThread, map.classes);
  FocalPass<T, Form, Wanted> pass(map, form, scale_of(image));
  run_planes<V>(pass, map, image, (item - row * packs) * V::kSize, first, last);
  return pass.loss();
}

// ---- rows ----

// The lower 32 bits of a label. Enough to recognize background, since no valid label shares them.
__device__ __forceinline__ int32_t low_half(const char* label) {
  return *reinterpret_cast<const int32_t*>(label);
}

// Marks the elements of a pack. Its first `left` elements belong to one row, the others to the next.
template <class V>
__device__ __forceinline__ Marks marks_of_rows(const ClassLabels& labels, int32_t left, int32_t classes) {
  Marks marks;
#pragma unroll 1
  for (int i = 0; i < V::kSize; ++i)
    marks.add(i, labels[i >= left], i < left ? classes - left + i : i - left);
  return marks;
}

// `count` packs from this element of the image, kFocalThreads packs apart.
template <class V, class T, class Pass>
__device__ __forceinline__ void run_rows(Pass& pass, const ClassMap<T>& map, int64_t image, int64_t element,
                                         int count) {
  constexpr int kStep = kFocalThreads * V::kSize;
  const int64_t row = divide(element, map.classes), begin = image * map.locations * map.classes + element;
  const ClassLabels labels = map.labels + (image * map.label_stride + row);
  const char* label = static_cast<const char*>(labels.data);  // label of the row of the pack's first element
  int32_t left = int32_t((row + 1) * map.classes - element);  // remaining elements of that row
  const T* from = map.x + begin;
  T* to = map.out + begin;
#pragma unroll 1
  for (; count > 0; --count, from += kStep, to += kStep) {
    V x = load<V>(from);
    Marks marks;
    if ((low_half(label) & low_half(left < V::kSize ? label + map.labels.size : label)) != kBackgroundLabel) {
      marks = marks_of_rows<V>({label, map.labels.size}, left, map.classes);
      hide(x, marks.any());
    }
    pass.run(from, to, x, marks);
    left -= map.elements_per_step;
    const bool wraps = left <= 0;
    if (wraps) left += map.classes;
    label += wraps ? map.label_bytes_per_step + map.labels.size : map.label_bytes_per_step;
  }
}

// Packs start at multiples of 16 bytes; the first tile also processes the remainders at both ends of the image.
template <class V, class T, class Pass>
__device__ __forceinline__ void run_row_tile(Pass& pass, const ClassMap<T>& map, int64_t image,
                                             int64_t tile) {
  constexpr int N = V::kSize;
  const int64_t numel = map.locations * map.classes, misaligned = image * numel % N;
  const int head = int(min((N - misaligned) % N, numel)), tail = int((numel - head) % N), i = threadIdx.x;
  if (tile == 0 && i < head + tail) {
    run_rows<Single<T>>(pass, map, image, i < head ? i : numel - head - tail + i, 1);
  }
  const int64_t packs = (numel - head) / N, own = tile * kPacksPerThread * kFocalThreads + i;
  if (own >= packs) return;
  const int64_t own_packs = (packs - own + kFocalThreads - 1) / kFocalThreads;
  run_rows<V>(pass, map, image, head + own * N, int(min(own_packs, int64_t(kPacksPerThread))));
}

template <Want Wanted, class V, class T, class Form, class ScaleOf>
__device__ __forceinline__ double row_tile(const ClassMap<T>& map, int64_t tile, const Form& form,
                                           const ScaleOf& scale_of) {
  const int64_t tiles = row_tiles_per_image(map), image = divide(tile, tiles);
  FocalPass<T, Form, Wanted> pass(map, form, scale_of(image));
  run_row_tile<V>(pass, map, image, tile - image * tiles);
  return pass.loss();
}

// Returns this thread's share of the losses of a tile. `scale_of(image)` multiplies loss and gradient.
template <Want Wanted, class T, class Form, class ScaleOf>
__device__ __forceinline__ double focal_tile(const ClassMap<T>& map, int64_t tile, const Form& form,
                                             const ScaleOf& scale_of) {
  if (map.channels_last) {
    return pack_of(map) == 1 ? row_tile<Wanted, Single<T>>(map, tile, form, scale_of)
                             : row_tile<Wanted, Vector<T>>(map, tile, form, scale_of);
  }
  const int64_t item = tile * kFocalThreads + threadIdx.x;
  if (item >= plane_items(map)) return 0;
  return pack_of(map) == 1 ? plane_item<Wanted, Single<T>>(map, item, form, scale_of)
                           : plane_item<Wanted, Vector<T>>(map, item, form, scale_of);
}

}  // namespace fcos_fast
