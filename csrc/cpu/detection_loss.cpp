// Units of work: ranges of the logits of an image and level, and ranges of locations for boxes and quality. The few
// positive locations are gathered, passed to the box-loss kernel together, and scattered back.
#include "../math/detection_loss.h"

#include <cstring>

#include "../math/element.h"
#include "focal_job.h"
#include "reduction.h"

namespace fcos_fast {
namespace {

constexpr int64_t kLocationsPerUnit = 2048;

template <class Real>
Real read_as(const LevelMap& map, int64_t i) {
  return math::read_element<Real>(map.values, map.dtype, i);
}
template <class Real>
void write_as(const LevelMap& map, int64_t i, Real value) {
  math::write_element(map.grad, map.dtype, i, value);
}

struct Losses {
  double of[kLossParts] = {0, 0, 0};
};

struct DetectionJob {
  const DetectionLossParameters& parameters;
  const DetectionLossWork& work;
  double upstream[kLossParts];
  double divisors[kLossParts];  // if there are no normalizers

  DetectionJob(const DetectionLossParameters& p, const DetectionLossWork& w) : parameters(p), work(w) {
    for (int part = 0; part < kLossParts; ++part) {
      upstream[part] = read_scalar(advance(w.upstream, part * size_of(sum_dtype())), sum_dtype());
    }
    const double positives = std::max<double>(w.totals[0], kLeastPositives);
    divisors[kClassification] = divisors[kQuality] = positives;
    divisors[kBoxes] = p.weighted ? std::max<double>(w.totals[1], kLeastCenternessSum) : positives;
  }

  bool is_double() const { return work.levels[0].maps[kClassification].dtype == Dtype::kFloat64; }
  Dtype sum_dtype() const { return is_double() ? Dtype::kFloat64 : Dtype::kFloat32; }

  // The factor of a part's loss in this image.
  double scale(int part, int64_t image) const {
    const float* normalizers = work.normalizers;
    return 1 / (normalizers != nullptr ? double(normalizers[part * work.batch + image]) : divisors[part]);
  }

  int64_t row_of(int64_t image, const DetectionLevel& level, int64_t location) const {
    return image * work.locations + level.first_location + location;
  }

  // ---- classification ----

  ClassFocalJob focal_job(int64_t image, const DetectionLevel& level) const {
    const LevelMap& logits = level.maps[kClassification];
    const int64_t element = size_of(logits.dtype), begin = image * logits.image * element;
    FocalSpan base{};
    base.x = advance(logits.values, begin);
    base.grad = advance(logits.grad, begin);
    base.scale = upstream[kClassification] * scale(kClassification, image);
    base.with_sum = true;
    const bool rows = logits.location != 1;
    return {{kernels(logits.dtype).focal, parameters.focal, element, base},
            rows ? level.locations : 1,
            work.classes,
            rows ? 1 : level.locations,
            {work.labels + row_of(image, level, 0), 4}};
  }

  Losses run_focal(int64_t image, const DetectionLevel& level, int64_t unit) const {
    Losses losses;
    losses.of[kClassification] = focal_job(image, level).run(unit) * scale(kClassification, image);
    return losses;
  }

  // ---- boxes and quality ----

  static void clear(const LevelMap& map, int64_t channels, int64_t image, int64_t begin, int64_t end) {
    if (map.grad == nullptr) return;
    const int64_t element = size_of(map.dtype);
    char* data = static_cast<char*>(map.grad) + image * map.image * element;
    if (map.location != 1) {
      std::memset(data + begin * channels * element, 0, (end - begin) * channels * element);
    } else {
      for (int64_t c = 0; c < channels; ++c) {
        std::memset(data + (c * map.channel + begin) * element, 0, (end - begin) * element);
      }
    }
  }

  Losses run_boxes(int64_t image, const DetectionLevel& level, int64_t begin, int64_t end) const {
    clear(level.maps[kBoxes], 4, image, begin, end);
    clear(level.maps[kQuality], 1, image, begin, end);
    std::vector<int64_t> positives;
    const int32_t* own = work.labels + row_of(image, level, 0);
    for (int64_t i = begin; i < end; ++i) {
      if (own[i] >= 0) positives.push_back(i);
    }
    if (positives.empty()) return {};
    return is_double() ? run_positives<double>(image, level, positives)
                       : run_positives<float>(image, level, positives);
  }

  template <class Real>
  Losses run_positives(int64_t image, const DetectionLevel& level,
                       const std::vector<int64_t>& positives) const {
    const int64_t n = int64_t(positives.size());
    const LevelMap& boxes = level.maps[kBoxes];
    const auto box_at = [&](int64_t k, int64_t side) {
      return image * boxes.image + side * boxes.channel + positives[k] * boxes.location;
    };
    const Real unit = Real(level.unit);

    std::vector<Real> pred(4 * n), target(4 * n), weight(n), loss(n), grad(4 * n);
    for (int64_t k = 0; k < n; ++k) {
      const int64_t row = row_of(image, level, positives[k]);
      for (int64_t side = 0; side < 4; ++side) {
        pred[4 * k + side] = read_as<Real>(boxes, box_at(k, side));
        target[4 * k + side] = Real(work.ltrb[4 * row + side]) / unit;
      }
      weight[k] = parameters.weighted ? Real(work.quality[row]) : Real(1);
    }

    const double box_scale = scale(kBoxes, image);
    const BoxLossKernel kernel = kernels(sum_dtype()).box_loss;
    BoxLossParameters box = parameters.box;
    BoxLossSpan span{pred.data(), target.data(), n, nullptr, 0, loss.data(), nullptr};
    kernel(span, box);
    Losses losses;
    for (int64_t k = 0; k < n; ++k) losses.of[kBoxes] += double(loss[k]) * double(weight[k]);
    losses.of[kBoxes] *= box_scale;
    if (boxes.grad != nullptr) {
      for (Real& w : weight) w *= Real(upstream[kBoxes] * box_scale);
      kernel({pred.data(), target.data(), n, weight.data(), 0, nullptr, grad.data()}, box);
      for (int64_t k = 0; k < 4 * n; ++k) write_as(boxes, box_at(k / 4, k % 4), grad[k]);
    }
    if (parameters.iou_quality) {
      box.kind = math::BoxLossKind::kLinearIou;  // 1 - IoU
      kernel(span, box);
    }
    const double quality_scale = scale(kQuality, image);
    const LevelMap& logits = level.maps[kQuality];
    for (int64_t k = 0; k < n; ++k) {
      const Real wanted =
          parameters.iou_quality ? 1 - loss[k] : Real(work.quality[row_of(image, level, positives[k])]);
      const int64_t place = image * logits.image + positives[k] * logits.location;
      const auto entropy = math::cross_entropy(read_as<Real>(logits, place), wanted);
      losses.of[kQuality] += double(entropy.loss);
      if (logits.grad != nullptr) {
        write_as(logits, place, Real(entropy.grad * Real(upstream[kQuality] * quality_scale)));
      }
    }
    losses.of[kQuality] *= quality_scale;
    return losses;
  }

  // ---- all units ----

  Losses run() const {
    struct Unit {
      int64_t image;
      int32_t level;
      int64_t begin, end;  // range of locations; if end is 0, unit `begin` of the focal loss
    };
    std::vector<Unit> units;
    for (int32_t l = 0; l < work.level_count; ++l) {
      const int64_t locations = work.levels[l].locations;
      for (int64_t image = 0; image < work.batch; ++image) {
        const int64_t focal_units = focal_job(image, work.levels[l]).count();
        for (int64_t u = 0; u < focal_units; ++u) units.push_back({image, l, u, 0});
        for (int64_t begin = 0; begin < locations; begin += kLocationsPerUnit) {
          units.push_back({image, l, begin, std::min(begin + kLocationsPerUnit, locations)});
        }
      }
    }
    std::vector<Losses> partial(units.size());
    run_units(int64_t(units.size()), [&](int64_t u) {
      const Unit& unit = units[u];
      const DetectionLevel& level = work.levels[unit.level];
      partial[u] = unit.end == 0 ? run_focal(unit.image, level, unit.begin)
                                 : run_boxes(unit.image, level, unit.begin, unit.end);
    });
    Losses total;
    for (const Losses& p : partial) {
      for (int part = 0; part < kLossParts; ++part) total.of[part] += p.of[part];
    }
    return total;
  }
};

template <class T>
void multiply(void* values, int64_t numel, double factor) {
  auto* p = static_cast<T*>(values);
  using Real = compute_t<T>;
  torch::stable::parallel_for(0, numel, 1 << 15, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) p[i] = T(Real(p[i]) * Real(factor));
  });
}

}  // namespace

void run_detection_loss(Cpu, const DetectionLossParameters& parameters, const DetectionLossWork& work) {
  const DetectionJob job(parameters, work);
  const Losses total = job.run();
  if (work.losses == nullptr) return;
  const Dtype dtype = job.sum_dtype();
  for (int part = 0; part < kLossParts; ++part) {
    write_scalar(advance(work.losses, part * size_of(dtype)), dtype, total.of[part]);
  }
}

void run_rescale(Cpu, const RescaleWork& work) {
  for (int i = 0; i < work.count; ++i) {
    const auto& gradient = work.gradients[i];
    if (gradient.numel == 0) continue;  // its pointer may be null
    const Dtype dtype = work.upstream_dtype;
    const double factor = read_scalar(advance(work.upstream, gradient.part * size_of(dtype)), dtype);
    if (factor == 0) {  // even if the gradient is not finite
      std::memset(gradient.values, 0, gradient.numel * size_of(gradient.dtype));
    } else if (factor != 1 && !work.only_zero) {  // the factor is usually 1
      dispatch(gradient.dtype,
               [&](auto element) { multiply<decltype(element)>(gradient.values, gradient.numel, factor); });
    }
  }
}

}  // namespace fcos_fast
