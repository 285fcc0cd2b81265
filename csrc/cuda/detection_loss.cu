// Two launches. The first has a block per tile of work: either logits of a level, or locations whose boxes and quality
// are processed. Each block writes final gradients and a partial sum; the second launch adds up the partial sums in
// order.
#include "../math/detection_loss.h"

#include "../math/element.h"
#include "class_focal.h"

namespace fcos_fast {
namespace {

using math::BoxLossKind;

constexpr int kRescaleThreads = 256;
constexpr int64_t kMostRescaleBlocks = 264;  // per gradient; few, since they usually have nothing to do

template <class T>
struct Level {
  ClassMap<T> logits;
  LevelMap boxes, quality;
  int64_t locations, first_location, first_tile, first_box_tile;
  float units_per_pixel;
};

template <class T>
struct Job {
  Level<T> levels[kMaxLevels];
  int32_t level_count;
  int64_t batch, locations;  // locations: P, over all levels
  int64_t tiles, box_tiles;
  const int32_t* __restrict__ labels;        // (B, P)
  const float* __restrict__ ltrb;            // (B, P, 4)
  const float* __restrict__ target_quality;  // (B, P)
  const float* __restrict__ totals;          // (2)
  const float* __restrict__ normalizers;     // (3, B), or null
  const float* __restrict__ upstream;        // (3), or null
  BoxLossKind kind;
  float smooth, eps;
  bool weighted, iou_quality;
  double* __restrict__ partial;  // tiles, then two per box tile
};

// The factor of a part's loss in this image.
template <class T>
__device__ __forceinline__ float scale_of(const Job<T>& job, int part, int64_t image) {
  if (job.normalizers != nullptr) return 1.0f / job.normalizers[part * job.batch + image];
  const bool by_weight = part == kBoxes && job.weighted;
  return 1.0f / fmaxf(job.totals[by_weight], by_weight ? float(kLeastCenternessSum) : float(kLeastPositives));
}
template <class T>
__device__ __forceinline__ float upstream_of(const Job<T>& job, int part) {
  return job.upstream != nullptr ? job.upstream[part] : 1.0f;
}

// ---- boxes and quality ----

// Loss, gradient and IoU of one pair of ltrb boxes.
template <BoxLossKind Kind>
__device__ __forceinline__ float pair_loss(const float pred[4], const float target[4], float smooth,
                                           float eps, float grad[4], float* iou) {
  const float p[4] = {-pred[0], -pred[1], pred[2], pred[3]};
  const float t[4] = {-target[0], -target[1], target[2], target[3]};
  const math::BoxPair<float, Kind> pair(p, t, smooth, eps);
  pair.grad(1.0f, grad);
  grad[0] = -grad[0];
  grad[1] = -grad[1];
  *iou = pair.iou;
  return pair.loss();
}

__device__ float box_loss_of(BoxLossKind kind, const float p[4], const float t[4], float smooth, float eps,
                             float grad[4], float* iou) {
  switch (kind) {
    case BoxLossKind::kIou:
      return pair_loss<BoxLossKind::kIou>(p, t, smooth, eps, grad, iou);
    case BoxLossKind::kLinearIou:
      return pair_loss<BoxLossKind::kLinearIou>(p, t, smooth, eps, grad, iou);
    case BoxLossKind::kGiou:
      return pair_loss<BoxLossKind::kGiou>(p, t, smooth, eps, grad, iou);
    case BoxLossKind::kDiou:
      return pair_loss<BoxLossKind::kDiou>(p, t, smooth, eps, grad, iou);
    default:
      return pair_loss<BoxLossKind::kCiou>(p, t, smooth, eps, grad, iou);
  }
}

// A location of a level, in a compact form that saves registers.
struct Place {
  int32_t image, location;

  template <class T>
  __device__ int64_t row(const Job<T>& job, const Level<T>& level) const {
    return image * job.locations + level.first_location + location;
  }
  __device__ int64_t in(const LevelMap& map) const { return image * map.image + location * map.location; }
};

// Returns the loss and IoU of the box at a positive location, and writes its gradient to `grad`.
template <class T>
__device__ __forceinline__ float positive_box(const Job<T>& job, const Level<T>& level, const Place& place,
                                              float grad[4], float* iou) {
  const LevelMap& boxes = level.boxes;
  float pred[4], target[4];
#pragma unroll
  for (int side = 0; side < 4; ++side) {
    pred[side] = math::read_element<float>(boxes.values, boxes.dtype, place.in(boxes) + side * boxes.channel);
    target[side] = job.ltrb[4 * place.row(job, level) + side] * level.units_per_pixel;
  }
  const float loss = box_loss_of(job.kind, pred, target, job.smooth, job.eps, grad, iou);
  const float weight =
      (job.weighted ? job.target_quality[place.row(job, level)] : 1.0f) * scale_of(job, kBoxes, place.image);
  for (int side = 0; side < 4; ++side) grad[side] *= weight * upstream_of(job, kBoxes);
  return weight * loss;
}

// One location per thread. `losses`: box loss and quality loss.
template <class T>
__device__ void box_tile(const Job<T>& job, const Level<T>& level, int64_t tile, float losses[2]) {
  losses[0] = losses[1] = 0;
  const int64_t flat = tile * kFocalThreads + threadIdx.x;
  if (flat >= job.batch * level.locations) return;
  const int64_t image = divide(flat, level.locations);
  const Place place{int32_t(image), int32_t(flat - image * level.locations)};
  const bool positive = job.labels[place.row(job, level)] >= 0;
  const LevelMap &boxes = level.boxes, &quality = level.quality;
  float grad[4] = {0, 0, 0, 0}, iou = 0;
  if (positive) losses[0] = positive_box(job, level, place, grad, &iou);
#pragma unroll
  for (int side = 0; boxes.grad != nullptr && side < 4; ++side) {
    math::write_element(boxes.grad, boxes.dtype, place.in(boxes) + side * boxes.channel, grad[side]);
  }

  float quality_grad = 0;
  if (positive) {
    const float scale = scale_of(job, kQuality, place.image);
    const float logit = math::read_element<float>(quality.values, quality.dtype, place.in(quality));
    const float target = job.iou_quality ? iou : job.target_quality[place.row(job, level)];
    const auto entropy = math::cross_entropy(logit, target);
    losses[1] = entropy.loss * scale;
    quality_grad = entropy.grad * scale * upstream_of(job, kQuality);
  }
  if (quality.grad != nullptr) {
    math::write_element(quality.grad, quality.dtype, place.in(quality), quality_grad);
  }
}

// ---- the launches ----

// At 48 registers, five blocks fit on a multiprocessor.
template <Want Wanted, class T, class Form>
__global__ void __launch_bounds__(kFocalThreads, 5)
    loss_kernel(const __grid_constant__ Job<T> job, const Form form) {
  const bool is_box = blockIdx.x < job.box_tiles;  // boxes first: their tiles have the longest latency
  const int64_t tile = is_box ? blockIdx.x : blockIdx.x - job.box_tiles;
  int l = 0;
  while (l + 1 < job.level_count &&
         tile >= (is_box ? job.levels[l + 1].first_box_tile : job.levels[l + 1].first_tile)) {
    ++l;
  }
  const Level<T>& level = job.levels[l];
  if (is_box) {
    float losses[2];
    box_tile(job, level, tile - level.first_box_tile, losses);
    const double boxes = block_sum(losses[0]), quality = block_sum(losses[1]);
    if (threadIdx.x == 0) {
      job.partial[job.tiles + tile] = boxes;
      job.partial[job.tiles + job.box_tiles + tile] = quality;
    }
    return;
  }
  const float upstream = upstream_of(job, kClassification);
  const auto scale = [&](int64_t image) { return scale_of(job, kClassification, image) * upstream; };
  const double total = block_sum(focal_tile<Wanted>(level.logits, tile - level.first_tile, form, scale));
  if (threadIdx.x == 0) job.partial[tile] = total;
}

__global__ void __launch_bounds__(kSumThreads) sum_kernel(const double* __restrict__ partial, int64_t tiles,
                                                          int64_t box_tiles, float* __restrict__ losses) {
  const int part = blockIdx.x;
  const int64_t begin = part == 0 ? 0 : tiles + (part - 1) * box_tiles;
  const int64_t end = begin + (part == 0 ? tiles : box_tiles);
  double total = 0;
  for (int64_t i = begin + threadIdx.x; i < end; i += kSumThreads) total += partial[i];
  total = block_sum(total);
  if (threadIdx.x == 0) losses[part] = float(total);
}

template <class T>
ClassMap<T> class_map(const DetectionLossWork& work, const DetectionLevel& level) {
  const LevelMap& logits = level.maps[kClassification];
  ClassMap<T> map{static_cast<const T*>(logits.values), nullptr, static_cast<T*>(logits.grad),
                  ClassLabels{work.labels, 4} + level.first_location};
  map.images = work.batch;
  map.locations = level.locations;
  map.label_stride = work.locations;
  map.classes = int32_t(work.classes);
  map.channels_last = logits.location != 1;
  prepare_rows(map);
  return map;
}

template <class T>
Job<T> describe(const DetectionLossParameters& p, const DetectionLossWork& work) {
  Job<T> job{};
  job.level_count = work.level_count;
  job.batch = work.batch;
  job.locations = work.locations;
  for (int l = 0; l < job.level_count; ++l) {
    const DetectionLevel& from = work.levels[l];
    Level<T>& level = job.levels[l];
    level.logits = class_map<T>(work, from);
    level.boxes = from.maps[kBoxes];
    level.quality = from.maps[kQuality];
    level.locations = from.locations;
    level.first_location = from.first_location;
    level.first_tile = job.tiles;
    level.first_box_tile = job.box_tiles;
    level.units_per_pixel = float(1 / from.unit);
    job.tiles += focal_tiles(level.logits);
    job.box_tiles += (work.batch * from.locations + kFocalThreads - 1) / kFocalThreads;
  }
  job.labels = work.labels;
  job.ltrb = work.ltrb;
  job.target_quality = work.quality;
  job.totals = work.totals;
  job.normalizers = work.normalizers;
  job.upstream = static_cast<const float*>(work.upstream);
  job.kind = p.box.kind;
  job.smooth = float(p.box.smooth);
  job.eps = float(p.box.eps);
  job.weighted = p.weighted;
  job.iou_quality = p.iou_quality;
  return job;
}

template <class T, class Form>
void launch(const Job<T>& job, const Form& form, cudaStream_t stream) {
  const int64_t blocks = job.tiles + job.box_tiles;
  if (blocks > 0x7fffffff)
    throw std::runtime_error("fcos_fast::detection_loss: the maps are too large: more than 2^31 - 1 blocks");
  if (blocks == 0) return;
  const bool with_grad = job.levels[0].boxes.grad != nullptr;
  const auto kernel =
      with_grad ? &loss_kernel<Want::kSumAndGrad, T, Form> : &loss_kernel<Want::kSum, T, Form>;
  kernel<<<unsigned(blocks), kFocalThreads, 0, stream>>>(job, form);
  check_launch();
}

}  // namespace

void run_detection_loss(Cuda device, const DetectionLossParameters& p, const DetectionLossWork& work) {
  dispatch_to_float32(work.levels[0].maps[kClassification].dtype, [&](auto element) {
    using T = decltype(element);
    Job<T> job = describe<T>(p, work);
    job.partial = device.scratch<double>(job.tiles + 2 * job.box_tiles);
    if (p.focal.gamma == 2) {
      launch(job, math::FocalLossSquare<float>(p.focal), stream_of(device));
    } else {
      launch(job, math::FocalLoss<float>(p.focal), stream_of(device));
    }
    if (work.losses == nullptr) return;
    sum_kernel<<<kLossParts, kSumThreads, 0, stream_of(device)>>>(job.partial, job.tiles, job.box_tiles,
                                                                  static_cast<float*>(work.losses));
    check_launch();
  });
}

// ---- rescaling ----

namespace {

// 16 bytes per access, except before the first and after the last multiple of 16 bytes.
template <class T>
__device__ void rescale(T* __restrict__ values, int64_t numel, float factor) {
  constexpr int N = Vector<T>::kSize;
  const int64_t thread = int64_t(blockIdx.x) * kRescaleThreads + threadIdx.x;
  const int64_t threads = int64_t(gridDim.x) * kRescaleThreads;
  const int64_t head = min(int64_t((16 - reinterpret_cast<uintptr_t>(values) % 16) % 16 / sizeof(T)), numel);
  const int64_t packs = (numel - head) / N, end = head + packs * N;
  const auto rescaled = [factor](float x) { return factor == 0.0f ? 0.0f : x * factor; };
  for (int64_t pack = thread; pack < packs; pack += threads) {
    T* at = values + head + pack * N;
    const auto x = load<Vector<T>>(at);
    float results[N];
#pragma unroll
    for (int i = 0; i < N; ++i) results[i] = rescaled(x[i]);
    store(at, Vector<T>::of(results));
  }
  if (thread < head) values[thread] = T(rescaled(float(values[thread])));
  if (thread < numel - end) values[end + thread] = T(rescaled(float(values[end + thread])));
}

// Does nothing for the usual factor of 1, which is only known on the device.
__global__ void __launch_bounds__(kRescaleThreads) rescale_kernel(const __grid_constant__ RescaleWork work) {
  const auto& gradient = work.gradients[blockIdx.y];
  const float factor = static_cast<const float*>(work.upstream)[gradient.part];
  if (work.only_zero ? factor != 0.0f : factor == 1.0f) return;
  switch (gradient.dtype) {
    case Dtype::kBFloat16:
      return rescale(static_cast<BFloat16*>(gradient.values), gradient.numel, factor);
    case Dtype::kFloat16:
      return rescale(static_cast<Half*>(gradient.values), gradient.numel, factor);
    default:
      return rescale(static_cast<float*>(gradient.values), gradient.numel, factor);
  }
}

}  // namespace

void run_rescale(Cuda device, const RescaleWork& work) {
  constexpr int64_t kElementsPerBlock = kRescaleThreads * Vector<BFloat16>::kSize;
  int64_t most = 0;
  for (int i = 0; i < work.count; ++i) most = std::max(most, work.gradients[i].numel);
  if (most == 0) return;
  const int64_t blocks = std::min((most + kElementsPerBlock - 1) / kElementsPerBlock, kMostRescaleBlocks);
  const dim3 grid(unsigned(blocks), unsigned(work.count));
  rescale_kernel<<<grid, kRescaleThreads, 0, stream_of(device)>>>(work);
  check_launch();
}

}  // namespace fcos_fast
