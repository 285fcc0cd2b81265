// Two launches. The first one has a block per tile of work: stretches of the logits of a level, or 256 locations for
// the boxes and their quality; each leaves partial sums, which the second launch adds in order. Gradients are final.
#include "../detection_levels.h"
#include "../math/element.h"
#include "launch_torch.h"

namespace fcos_fast {
namespace {

using namespace math;

constexpr int kMaxLevels = 8;
constexpr int kVectorsPerThread = 4;  // of a flat tile
constexpr int kClassesPerItem = 8;    // whose logits share the labels that a thread holds
constexpr int kSumThreads = 1024;
constexpr int kRescaleBlocks = 264;  // per buffer; few, for they usually have nothing to do

// How a level's logits are walked.
enum class Walk : int {
  kFlat,    // 16 bytes after 16 bytes
  kPlanes,  // a thread keeps its 16 bytes of locations and goes through some classes
};

// One map of boxes or quality, of whatever type.
struct AnyMap {
  const void* values;
  void* grad;  // or null
  Dtype dtype;
  int64_t image, channel, location;  // strides in elements
};

template <class T>
struct Level {
  const T* logits;
  T* grad;  // or null
  Walk walk;
  bool channels_last;
  int32_t locations;
  int64_t first_location, first_tile, first_box_tile;
  AnyMap boxes, quality;
  compute_t<T> unit;
};

template <class T>
struct Job {
  Level<T> levels[kMaxLevels];
  int32_t level_count, batch, classes;
  int64_t locations;  // of all levels
  int64_t tiles, box_tiles;
  const int32_t* labels;
  const float* ltrb;
  const float* target_quality;
  const float* totals;
  const float* normalizers;      // or null
  const compute_t<T>* upstream;  // or null
  BoxLossKind kind;
  compute_t<T> smooth, eps;
  bool weighted, iou_quality;
  double* partial;  // tiles, then two per box tile
};

template <class T>
__device__ __forceinline__ compute_t<T> scale_of(const Job<T>& job, int part, int64_t image) {
  using C = compute_t<T>;
  if (job.normalizers != nullptr) return C(1) / C(job.normalizers[part * job.batch + image]);
  const bool by_weight = part == kBoxes && job.weighted;
  return C(1) / larger(C(job.totals[by_weight]), by_weight ? C(kLeastCenternessSum) : C(kLeastPositives));
}
template <class T>
__device__ __forceinline__ compute_t<T> upstream_of(const Job<T>& job, int part) {
  return job.upstream != nullptr ? job.upstream[part] : compute_t<T>(1);
}
// Where nothing flows in there is no gradient, not even one that is not finite.
template <class C>
__device__ __forceinline__ C scaled(C grad, C factor) {
  return factor == C(0) ? C(0) : grad * factor;
}

template <class C, class Form>
__device__ __forceinline__ LossAndGrad<C> of_class(const Form& form, C x, bool foreground) {
  const auto at =
      form.background(foreground ? -x : x, foreground ? form.positive_weight : form.negative_weight);
  return {at.loss, foreground ? -at.grad : at.grad};
}

// ---- classification, flat ----

// Where a flat position of a level stands: its class, and its location among those of its image.
struct Position {
  int32_t label, location, image;

  template <class T>
  __device__ Position(const Job<T>& job, const Level<T>& level, int64_t flat) {
    const int32_t fast = level.channels_last ? job.classes : level.locations;
    const bool small = flat <= 0xffffffffll;  // 64-bit division is slow
    const int64_t outer = small ? uint32_t(flat) / uint32_t(fast) : flat / fast;
    const int32_t inner = int32_t(flat - outer * fast);
    const int32_t slow = level.channels_last ? level.locations : job.classes;
    image = int32_t(small ? uint32_t(outer) / uint32_t(slow) : outer / slow);
    const int32_t rest = int32_t(outer - int64_t(image) * slow);
    label = level.channels_last ? inner : rest;
    location = level.channels_last ? rest : inner;
  }
  // To the next element; true where the location is another one.
  template <class T>
  __device__ bool advance(const Job<T>& job, const Level<T>& level) {
    if (level.channels_last) {
      if (++label < job.classes) return false;
      label = 0;
      if (++location == level.locations) location = 0, ++image;
      return true;
    }
    if (++location == level.locations) {
      location = 0;
      if (++label == job.classes) label = 0, ++image;
    }
    return true;
  }
};

template <class T>
__device__ __forceinline__ int32_t label_at(const Job<T>& job, const Level<T>& level, const Position& at) {
  return __ldg(job.labels + at.image * job.locations + level.first_location + at.location);
}

template <class T, class Form>
__device__ double flat_tile(const Job<T>& job, const Level<T>& level, int64_t tile, const Form& form) {
  using C = compute_t<T>;
  constexpr int N = 16 / sizeof(T);
  const int64_t numel = int64_t(job.batch) * job.classes * level.locations;
  const C up = upstream_of(job, kClassification);
  double total = 0;
#pragma unroll 1
  for (int k = 0; k < kVectorsPerThread; ++k) {
    const int64_t begin = ((tile * kVectorsPerThread + k) * kThreads + threadIdx.x) * N;
    if (begin >= numel) break;
    const int count = int(min(int64_t(N), numel - begin));
    const Pack<T, N> x = load_pack<N>(level.logits + begin, count);
    Position at(job, level, begin);
    int32_t target = label_at(job, level, at);
    int32_t image = at.image;
    C scale = scale_of(job, kClassification, image);
    Pack<T, N> out;
    C pack_total = 0;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      out.v[i] = T(0.0f);
      if (i < count) {
        if (target != -2) {
          const auto value = of_class(form, C(x.v[i]), target == at.label);
          pack_total += value.loss * scale;
          if (up != C(0)) out.v[i] = T(value.grad * (scale * up));
        }
        if (i + 1 < count && at.advance(job, level)) {
          target = label_at(job, level, at);
          if (at.image != image) {
            image = at.image;
            scale = scale_of(job, kClassification, image);
          }
        }
      }
    }
    total += double(pack_total);
    if (level.grad != nullptr) store_pack(level.grad + begin, out, count);
  }
  return total;
}

// ---- classification, planes of a multiple of 16 bytes ----

template <class T>
__host__ __device__ int64_t plane_items(const Level<T>& level, int32_t batch, int32_t classes) {
  const int64_t vectors = level.locations / (16 / sizeof(T));
  return vectors * ((classes + kClassesPerItem - 1) / kClassesPerItem) * batch;
}

template <class T, class Form>
__device__ double plane_tile(const Job<T>& job, const Level<T>& level, int64_t tile, const Form& form) {
  using C = compute_t<T>;
  constexpr int N = 16 / sizeof(T);
  const int64_t item = tile * kThreads + threadIdx.x;
  if (item >= plane_items(level, job.batch, job.classes)) return 0;
  const int64_t vectors = level.locations / N;
  const int64_t chunks = (job.classes + kClassesPerItem - 1) / kClassesPerItem;
  const int64_t row = item / vectors;
  const int64_t image = row / chunks;
  const int32_t location = int32_t(item - row * vectors) * N;
  const int32_t first = int32_t(row - image * chunks) * kClassesPerItem;
  const int32_t last = min(first + kClassesPerItem, job.classes);

  int32_t targets[N];
  const int32_t* labels = job.labels + image * job.locations + level.first_location + location;
#pragma unroll
  for (int i = 0; i < N; ++i) targets[i] = __ldg(labels + i);
  const C scale = scale_of(job, kClassification, image);
  const C factor = scale * upstream_of(job, kClassification);
  const bool flows = factor != C(0);
  C total = 0;  // of some 64 elements at most
  int64_t at = (image * job.classes + first) * int64_t(level.locations) + location;
  Pack<T, N> next = load_pack<N>(level.logits + at, N);
#pragma unroll 1
  for (int32_t c = first; c < last; ++c, at += level.locations) {
    const Pack<T, N> x = next;
    if (c + 1 < last) next = load_pack<N>(level.logits + at + level.locations, N);  // on its way meanwhile
    Pack<T, N> out;
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const auto value = of_class(form, C(x.v[i]), targets[i] == c);
      const bool counts = targets[i] != -2;
      total += counts ? value.loss : C(0);
      out.v[i] = T(counts && flows ? value.grad * factor : C(0));
    }
    if (level.grad != nullptr) store_pack(level.grad + at, out, N);
  }
  return double(total) * double(scale);
}

// ---- boxes and quality ----

template <class C>
__device__ __forceinline__ C read_as(const AnyMap& map, int64_t i) {
  return read_element<C>(map.values, map.dtype, i);
}
template <class C>
__device__ __forceinline__ void write_as(const AnyMap& map, int64_t i, C value) {
  write_element(map.grad, map.dtype, i, value);
}

// Loss, its gradient times `upstream`, and IoU of one pair of ltrb boxes.
template <BoxLossKind Kind, class C>
__device__ __forceinline__ C pair_loss(const C pred[4], const C target[4], C smooth, C eps, C upstream,
                                       C grad[4], C* iou) {
  const C p[4] = {-pred[0], -pred[1], pred[2], pred[3]};
  const C t[4] = {-target[0], -target[1], target[2], target[3]};
  const BoxPair<C, Kind> pair(p, t, smooth, eps);
  pair.grad(upstream, grad);
  grad[0] = -grad[0];
  grad[1] = -grad[1];
  *iou = pair.iou;
  return pair.loss();
}

template <class C>
__device__ C box_loss_of(BoxLossKind kind, const C p[4], const C t[4], C smooth, C eps, C upstream, C grad[4],
                         C* iou) {
  switch (kind) {
    case BoxLossKind::kIou:
      return pair_loss<BoxLossKind::kIou>(p, t, smooth, eps, upstream, grad, iou);
    case BoxLossKind::kLinearIou:
      return pair_loss<BoxLossKind::kLinearIou>(p, t, smooth, eps, upstream, grad, iou);
    case BoxLossKind::kGiou:
      return pair_loss<BoxLossKind::kGiou>(p, t, smooth, eps, upstream, grad, iou);
    case BoxLossKind::kDiou:
      return pair_loss<BoxLossKind::kDiou>(p, t, smooth, eps, upstream, grad, iou);
    default:
      return pair_loss<BoxLossKind::kCiou>(p, t, smooth, eps, upstream, grad, iou);
  }
}

// One location per thread. `losses` of boxes and quality.
template <class T>
__device__ void box_tile(const Job<T>& job, const Level<T>& level, int64_t tile, double losses[2]) {
  using C = compute_t<T>;
  losses[0] = losses[1] = 0;
  const int64_t flat = tile * kThreads + threadIdx.x;
  if (flat >= int64_t(job.batch) * level.locations) return;
  const int64_t image = flat / level.locations, location = flat - image * level.locations;
  const int64_t row = image * job.locations + level.first_location + location;
  const int64_t box_at = image * level.boxes.image + location * level.boxes.location;
  const int64_t quality_at = image * level.quality.image + location * level.quality.location;
  C grad[4] = {C(0), C(0), C(0), C(0)}, quality_grad = 0;
  if (job.labels[row] >= 0) {
    C pred[4], target[4], iou;
#pragma unroll
    for (int side = 0; side < 4; ++side) {
      pred[side] = read_as<C>(level.boxes, box_at + side * level.boxes.channel);
      target[side] = C(job.ltrb[4 * row + side]) / level.unit;
    }
    const C centerness = C(job.target_quality[row]);
    const C weight = (job.weighted ? centerness : C(1)) * scale_of(job, kBoxes, image);
    const C loss = box_loss_of<C>(job.kind, pred, target, job.smooth, job.eps, weight, grad, &iou);
    losses[0] = double(loss * weight);
    const C scale = scale_of(job, kQuality, image);
    const auto entropy =
        cross_entropy(read_as<C>(level.quality, quality_at), job.iou_quality ? iou : centerness);
    losses[1] = double(entropy.loss * scale);
    quality_grad = scaled(entropy.grad * scale, upstream_of(job, kQuality));
    for (C& g : grad) g = scaled(g, upstream_of(job, kBoxes));
  }
  if (level.boxes.grad == nullptr) return;
#pragma unroll
  for (int side = 0; side < 4; ++side) write_as(level.boxes, box_at + side * level.boxes.channel, grad[side]);
  write_as(level.quality, quality_at, quality_grad);
}

// ---- the launches ----

// At 64 registers four blocks share a multiprocessor.
template <class T, class Form>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 2 : 4)
    loss_kernel(const __grid_constant__ Job<T> job, Form form) {
  const bool is_box = blockIdx.x < job.box_tiles;  // boxes first: their tiles take longest to start
  const int64_t tile = is_box ? blockIdx.x : blockIdx.x - job.box_tiles;
  int l = 0;
  while (l + 1 < job.level_count &&
         tile >= (is_box ? job.levels[l + 1].first_box_tile : job.levels[l + 1].first_tile)) {
    ++l;
  }
  const Level<T>& level = job.levels[l];
  if (is_box) {
    double losses[2];
    box_tile(job, level, tile - level.first_box_tile, losses);
    const double boxes = block_sum(losses[0]), quality = block_sum(losses[1]);
    if (threadIdx.x == 0) {
      job.partial[job.tiles + tile] = boxes;
      job.partial[job.tiles + job.box_tiles + tile] = quality;
    }
    return;
  }
  const int64_t own = tile - level.first_tile;
  const double total = block_sum(level.walk == Walk::kPlanes ? plane_tile(job, level, own, form)
                                                             : flat_tile(job, level, own, form));
  if (threadIdx.x == 0) job.partial[tile] = total;
}

template <class Out>
__global__ void __launch_bounds__(kSumThreads)
    sum_kernel(const double* partial, int64_t tiles, int64_t box_tiles, Out* losses) {
  const int part = blockIdx.x;
  const int64_t begin = part == 0 ? 0 : tiles + (part - 1) * box_tiles;
  const int64_t end = begin + (part == 0 ? tiles : box_tiles);
  double total = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += kSumThreads) total += partial[i];
  total = block_sum(total);
  if (threadIdx.x == 0) losses[part] = Out(total);
}

int64_t tiles_for(int64_t items) { return (items + kThreads - 1) / kThreads; }

AnyMap any_map(const Tensor& values, Tensor* grad) {
  const MapLayout layout = layout_of(values);
  return {values.const_data_ptr(), grad == nullptr ? nullptr : grad->mutable_data_ptr(),
          dtype_of(values),        layout.image,
          layout.channel,          layout.location};
}

template <class T>
Job<T> describe(DetectionMaps& maps, const DetectionTargets& targets, const std::vector<double>& units,
                const DetectionLossParameters& p, bool with_grad) {
  constexpr int N = 16 / sizeof(T);
  Job<T> job{};
  job.level_count = int32_t(maps.levels());
  job.batch = int32_t(maps.batch);
  job.classes = int32_t(maps.classes);
  job.locations = maps.locations();
  for (int l = 0; l < job.level_count; ++l) {
    Level<T>& level = job.levels[l];
    const Tensor& logits = maps.maps[kClassification][l];
    level.logits = static_cast<const T*>(logits.const_data_ptr());
    if (with_grad) level.grad = static_cast<T*>(maps.grads[kClassification][l].mutable_data_ptr());
    level.locations = int32_t(maps.locations(l));
    level.first_location = maps.first[l];
    level.first_tile = job.tiles;
    level.first_box_tile = job.box_tiles;
    level.channels_last = focal_layout_of(logits).inner == 1;
    level.walk = !level.channels_last && level.locations % N == 0 ? Walk::kPlanes : Walk::kFlat;
    level.boxes = any_map(maps.maps[kBoxes][l], with_grad ? &maps.grads[kBoxes][l] : nullptr);
    level.quality = any_map(maps.maps[kQuality][l], with_grad ? &maps.grads[kQuality][l] : nullptr);
    level.unit = compute_t<T>(units[l]);
    const int64_t items = level.walk == Walk::kPlanes
                              ? plane_items(level, job.batch, job.classes)
                              : (logits.numel() + N * kVectorsPerThread - 1) / (N * kVectorsPerThread);
    job.tiles += tiles_for(items);
    job.box_tiles += tiles_for(maps.batch * maps.locations(l));
  }
  job.labels = static_cast<const int32_t*>(targets.labels.const_data_ptr());
  job.ltrb = static_cast<const float*>(targets.ltrb.const_data_ptr());
  job.target_quality = static_cast<const float*>(targets.quality.const_data_ptr());
  job.totals = static_cast<const float*>(targets.totals.const_data_ptr());
  if (targets.normalizers.has_value()) {
    job.normalizers = static_cast<const float*>(targets.normalizers->const_data_ptr());
  }
  job.kind = p.box.kind;
  job.smooth = compute_t<T>(p.box.smooth);
  job.eps = compute_t<T>(p.box.eps);
  job.weighted = p.weighted;
  job.iou_quality = p.iou_quality;
  return job;
}

// Losses, and the gradients into maps.grads where there are any.
Tensor run(DetectionMaps& maps, const DetectionTargets& targets, const std::vector<double>& units,
           const DetectionLossParameters& p, const Tensor* upstream, bool with_grad) {
  STD_TORCH_CHECK(maps.levels() <= kMaxLevels, "fcos_fast::detection_loss: ", maps.levels(),
                  " levels on a GPU; at most ", kMaxLevels);
  for (Tensor& logits : maps.maps[kClassification]) logits = aligned(logits);
  const Tensor& like = maps.maps[kClassification][0];
  const OnDeviceOf device(like);
  const ScalarType dtype = like.scalar_type();
  Tensor losses = new_empty(like, {kLossParts}, sum_type(dtype));
  Tensor factors;
  if (upstream != nullptr) {
    check_upstream(*upstream, like);
    factors = torch::stable::contiguous(converted(*upstream, sum_type(dtype)));
  }

  dispatch_floating("detection_loss", dtype, [&](auto element) {
    using T = decltype(element);
    using C = compute_t<T>;
    Job<T> job = describe<T>(maps, targets, units, p, with_grad);
    if (upstream != nullptr) job.upstream = static_cast<const C*>(factors.const_data_ptr());
    Tensor partial = new_empty(like, {job.tiles + 2 * job.box_tiles}, ScalarType::Double);
    job.partial = static_cast<double*>(partial.mutable_data_ptr());
    const int64_t blocks = job.tiles + job.box_tiles;
    STD_TORCH_CHECK(blocks <= 0x7fffffff, "fcos_fast::detection_loss: too large for one launch");
    if (blocks > 0) {
      if (p.focal.gamma == 2) {
        loss_kernel<T><<<unsigned(blocks), kThreads, 0, device.stream()>>>(job, FocalLossSquare<C>(p.focal));
      } else {
        loss_kernel<T><<<unsigned(blocks), kThreads, 0, device.stream()>>>(job, FocalLoss<C>(p.focal));
      }
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
    sum_kernel<<<kLossParts, kSumThreads, 0, device.stream()>>>(job.partial, job.tiles, job.box_tiles,
                                                                static_cast<C*>(losses.mutable_data_ptr()));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  });
  return losses;
}

std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>> detection_loss(
    std::vector<Tensor> cls_logits, std::vector<Tensor> box_regression, std::vector<Tensor> centerness,
    const Tensor& labels, const Tensor& ltrb, const Tensor& quality, const Tensor& totals,
    std::optional<Tensor> normalizers, std::vector<double> units, double alpha, double gamma,
    int64_t box_kind, double smooth, double eps, bool weighted, bool iou_quality, bool with_grad) {
  DetectionMaps maps = read_maps(cls_logits, box_regression, centerness, with_grad);
  const auto targets = read_targets(labels, ltrb, quality, totals, normalizers, maps);
  const auto parameters =
      read_parameters(units, maps.levels(), alpha, gamma, box_kind, smooth, eps, weighted, iou_quality);
  Tensor losses = run(maps, targets, units, parameters, nullptr, with_grad);
  return {losses, maps.results(kClassification), maps.results(kBoxes), maps.results(kQuality)};
}

std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>> detection_loss_backward(
    const Tensor& upstream, std::vector<Tensor> cls_logits, std::vector<Tensor> box_regression,
    std::vector<Tensor> centerness, const Tensor& labels, const Tensor& ltrb, const Tensor& quality,
    const Tensor& totals, std::optional<Tensor> normalizers, std::vector<double> units, double alpha,
    double gamma, int64_t box_kind, double smooth, double eps, bool weighted, bool iou_quality) {
  DetectionMaps maps = read_maps(cls_logits, box_regression, centerness, true);
  const auto targets = read_targets(labels, ltrb, quality, totals, normalizers, maps);
  const auto parameters =
      read_parameters(units, maps.levels(), alpha, gamma, box_kind, smooth, eps, weighted, iou_quality);
  run(maps, targets, units, parameters, &upstream, true);
  return {maps.results(kClassification), maps.results(kBoxes), maps.results(kQuality)};
}

// ---- rescaling ----

struct Buffers {
  struct {
    void* values;
    int64_t numel;
    Dtype dtype;
    int part;
  } of[kLossParts * kMaxLevels];
};

template <class T>
__device__ void multiply(void* values, int64_t numel, double factor) {
  using C = compute_t<T>;
  T* p = static_cast<T*>(values);
  for (int64_t i = int64_t(blockIdx.x) * kThreads + threadIdx.x; i < numel;
       i += int64_t(gridDim.x) * kThreads) {
    p[i] = T(scaled(C(p[i]), C(factor)));
  }
}

// Nothing is to be done for the usual factor 1, which only the device knows.
template <class U>
__global__ void __launch_bounds__(kThreads)
    rescale_kernel(const __grid_constant__ Buffers buffers, const U* upstream) {
  const auto& buffer = buffers.of[blockIdx.y];
  const double factor = double(upstream[buffer.part]);
  if (factor == 1) return;
  switch (buffer.dtype) {
    case Dtype::kFloat32:
      return multiply<float>(buffer.values, buffer.numel, factor);
    case Dtype::kBFloat16:
      return multiply<BFloat16>(buffer.values, buffer.numel, factor);
    case Dtype::kFloat16:
      return multiply<Half>(buffer.values, buffer.numel, factor);
    default:
      return multiply<double>(buffer.values, buffer.numel, factor);
  }
}

void detection_loss_rescale_(std::vector<Tensor> cls_grads, std::vector<Tensor> box_grads,
                             std::vector<Tensor> centerness_grads, const Tensor& upstream) {
  const std::vector<Tensor>* const lists[kLossParts] = {&cls_grads, &box_grads, &centerness_grads};
  check_rescaled(lists, upstream);
  const OnDeviceOf device(upstream);
  const bool is_double = upstream.scalar_type() == ScalarType::Double;
  const Tensor factors =
      torch::stable::contiguous(is_double ? upstream : converted(upstream, ScalarType::Float));
  Buffers buffers{};
  unsigned count = 0;
  for (int part = 0; part < kLossParts; ++part) {
    STD_TORCH_CHECK(lists[part]->size() <= kMaxLevels, "fcos_fast::detection_loss_rescale_: at most ",
                    kMaxLevels, " levels");
    for (Tensor t : *lists[part]) {
      buffers.of[count++] = {t.mutable_data_ptr(), t.numel(), dtype_of(t), part};
    }
  }
  if (count == 0) return;
  const dim3 grid{kRescaleBlocks, count};
  const void* values = factors.const_data_ptr();
  if (is_double) {
    rescale_kernel<<<grid, kThreads, 0, device.stream()>>>(buffers, static_cast<const double*>(values));
  } else {
    rescale_kernel<<<grid, kThreads, 0, device.stream()>>>(buffers, static_cast<const float*>(values));
  }
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace
}  // namespace fcos_fast

STABLE_TORCH_LIBRARY_IMPL(fcos_fast, CUDA, m) {
  using namespace fcos_fast;
  m.impl("detection_loss", TORCH_BOX(&detection_loss));
  m.impl("detection_loss_backward", TORCH_BOX(&detection_loss_backward));
  m.impl("detection_loss_rescale_", TORCH_BOX(&detection_loss_rescale_));
}
