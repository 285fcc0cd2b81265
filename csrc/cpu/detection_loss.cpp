// Units of work: stretches of the logits of an image and level, then stretches of locations for boxes and quality.
// Positive locations are few: they are gathered, go through the box-loss kernel together, and are scattered.
#include "../detection_levels.h"
#include "../math/element.h"
#include "focal_job.h"
#include "reduction.h"

namespace fcos_fast {
namespace {

constexpr int64_t kLocationsPerUnit = 2048;

template <class Real>
Real read_as(const Tensor& t, int64_t i) {
  return math::read_element<Real>(t.const_data_ptr(), dtype_of(t), i);
}
template <class Real>
void write_as(Tensor& t, int64_t i, Real value) {
  math::write_element(t.mutable_data_ptr(), dtype_of(t), i, value);
}

// What an image's loss of a part is multiplied by.
class Scales {
 public:
  Scales(const DetectionTargets& targets, bool weighted, int64_t batch) : batch_(batch) {
    if (targets.normalizers.has_value()) {
      normalizers_ = static_cast<const float*>(targets.normalizers->const_data_ptr());
    }
    const auto* totals = static_cast<const float*>(targets.totals.const_data_ptr());
    const double positives = std::max<double>(totals[0], kLeastPositives);
    common_[kClassification] = common_[kQuality] = positives;
    common_[kBoxes] = weighted ? std::max<double>(totals[1], kLeastCenternessSum) : positives;
  }
  double operator()(int part, int64_t image) const {
    return 1 / (normalizers_ ? double(normalizers_[part * batch_ + image]) : common_[part]);
  }

 private:
  const float* normalizers_ = nullptr;
  double common_[kLossParts];
  int64_t batch_;
};

struct Losses {
  double of[kLossParts] = {0, 0, 0};
};

struct DetectionJob {
  DetectionMaps& maps;
  const DetectionTargets& targets;
  const std::vector<double>& units;
  const DetectionLossParameters& parameters;
  Scales scales;
  double upstream[kLossParts];
  bool with_grad;

  const int32_t* labels(int64_t image, size_t level) const {
    return static_cast<const int32_t*>(targets.labels.const_data_ptr()) + at(image, level, 0);
  }
  int64_t at(int64_t image, size_t level, int64_t location) const {
    return image * maps.locations() + maps.first[level] + location;
  }

  // ---- classification ----

  ClassFocalJob focal_job(int64_t image, size_t level) const {
    const Tensor& logits = maps.maps[kClassification][level];
    const int64_t begin = image * maps.classes * maps.locations(level) * int64_t(logits.element_size());
    FocalSpan base{};
    base.x = static_cast<const char*>(logits.const_data_ptr()) + begin;
    base.scale = upstream[kClassification] * scales(kClassification, image);
    base.with_sum = true;
    if (with_grad) {
      Tensor grad = maps.grads[kClassification][level];
      base.grad = static_cast<char*>(grad.mutable_data_ptr()) + begin;
    }
    return {{kernels(dtype_of(logits)).focal, parameters.focal, int64_t(logits.element_size()), base},
            focal_layout_of(logits),
            ClassLabels(labels(image, level))};
  }

  Losses run_focal(int64_t image, size_t level, int64_t unit) const {
    Losses losses;
    losses.of[kClassification] = focal_job(image, level).run(unit) * scales(kClassification, image);
    return losses;
  }

  // ---- boxes and quality ----

  void clear(int part, int64_t image, size_t level, int64_t begin, int64_t end) const {
    Tensor grad = maps.grads[part][level];
    const MapLayout layout = layout_of(grad);
    const size_t element = grad.element_size();
    char* data = static_cast<char*>(grad.mutable_data_ptr()) + image * layout.image * element;
    const int64_t channels = grad.size(1);
    if (layout.channel == 1) {
      std::memset(data + begin * channels * element, 0, (end - begin) * channels * element);
    } else {
      for (int64_t c = 0; c < channels; ++c) {
        std::memset(data + (c * layout.channel + begin) * element, 0, (end - begin) * element);
      }
    }
  }

  Losses run_boxes(int64_t image, size_t level, int64_t begin, int64_t end) const {
    if (with_grad) {
      clear(kBoxes, image, level, begin, end);
      clear(kQuality, image, level, begin, end);
    }
    std::vector<int64_t> positives;
    const int32_t* own = labels(image, level);
    for (int64_t i = begin; i < end; ++i) {
      if (own[i] >= 0) positives.push_back(i);
    }
    if (positives.empty()) return {};
    const bool is_double = maps.maps[kClassification][0].scalar_type() == ScalarType::Double;
    return is_double ? run_positives<double>(image, level, positives)
                     : run_positives<float>(image, level, positives);
  }

  template <class Real>
  Losses run_positives(int64_t image, size_t level, const std::vector<int64_t>& positives) const {
    const int64_t n = int64_t(positives.size());
    const auto* ltrb = static_cast<const float*>(targets.ltrb.const_data_ptr());
    const auto* quality = static_cast<const float*>(targets.quality.const_data_ptr());
    const Tensor& regression = maps.maps[kBoxes][level];
    const MapLayout layout = layout_of(regression);
    const Real unit = Real(units[level]);

    std::vector<Real> pred(4 * n), target(4 * n), weight(n), loss(n), grad(4 * n);
    const double box_scale = scales(kBoxes, image);
    for (int64_t k = 0; k < n; ++k) {
      const int64_t row = at(image, level, positives[k]);
      for (int64_t side = 0; side < 4; ++side) {
        pred[4 * k + side] = read_as<Real>(
            regression, image * layout.image + side * layout.channel + positives[k] * layout.location);
        target[4 * k + side] = Real(ltrb[4 * row + side]) / unit;
      }
      weight[k] = parameters.weighted ? Real(quality[row]) : Real(1);
    }

    const ScalarType dtype = sizeof(Real) == 8 ? ScalarType::Double : ScalarType::Float;
    const BoxLossKernel kernel = kernels(dtype_of(dtype)).box_loss;
    BoxLossParameters box = parameters.box;
    BoxLossSpan span{pred.data(), target.data(), n, nullptr, 0, loss.data(), nullptr};
    kernel(span, box);
    Losses losses;
    for (int64_t k = 0; k < n; ++k) losses.of[kBoxes] += double(loss[k]) * double(weight[k]);
    losses.of[kBoxes] *= box_scale;
    if (with_grad) {
      for (Real& w : weight) w *= Real(upstream[kBoxes] * box_scale);
      kernel({pred.data(), target.data(), n, weight.data(), 0, nullptr, grad.data()}, box);
      Tensor out = maps.grads[kBoxes][level];
      for (int64_t k = 0; k < 4 * n; ++k) {
        write_as(out, image * layout.image + (k % 4) * layout.channel + positives[k / 4] * layout.location,
                 grad[k]);
      }
    }
    if (parameters.iou_quality) {
      box.kind = math::BoxLossKind::kLinearIou;  // 1 - IoU
      kernel(span, box);
    }
    const double quality_scale = scales(kQuality, image);
    const Tensor& logits = maps.maps[kQuality][level];
    const MapLayout quality_layout = layout_of(logits);
    for (int64_t k = 0; k < n; ++k) {
      const Real wanted =
          parameters.iou_quality ? 1 - loss[k] : Real(quality[at(image, level, positives[k])]);
      const int64_t place = image * quality_layout.image + positives[k] * quality_layout.location;
      const auto entropy = math::cross_entropy(read_as<Real>(logits, place), wanted);
      losses.of[kQuality] += double(entropy.loss);
      if (with_grad) {
        Tensor out = maps.grads[kQuality][level];
        write_as(out, place, Real(entropy.grad * Real(upstream[kQuality] * quality_scale)));
      }
    }
    losses.of[kQuality] *= quality_scale;
    return losses;
  }

  // ---- all of it ----

  Losses run() const {
    struct Unit {
      int64_t image;
      size_t level;
      int64_t begin, end;  // locations; or, with end 0, the begin-th unit of the focal loss
    };
    std::vector<Unit> work;
    for (size_t level = 0; level < maps.levels(); ++level) {
      for (int64_t image = 0; image < maps.batch; ++image) {
        const int64_t focal_units = focal_job(image, level).count();
        for (int64_t u = 0; u < focal_units; ++u) work.push_back({image, level, u, 0});
        const int64_t locations = maps.locations(level);
        for (int64_t begin = 0; begin < locations; begin += kLocationsPerUnit) {
          work.push_back({image, level, begin, std::min(begin + kLocationsPerUnit, locations)});
        }
      }
    }
    std::vector<Losses> partial(work.size());
    run_units(int64_t(work.size()), [&](int64_t u) {
      const Unit& unit = work[u];
      partial[u] = unit.end == 0 ? run_focal(unit.image, unit.level, unit.begin)
                                 : run_boxes(unit.image, unit.level, unit.begin, unit.end);
    });
    Losses total;
    for (const Losses& p : partial) {
      for (int part = 0; part < kLossParts; ++part) total.of[part] += p.of[part];
    }
    return total;
  }
};

Losses run(DetectionMaps& maps, const DetectionTargets& targets, const std::vector<double>& units,
           const DetectionLossParameters& parameters, const Tensor* upstream, bool with_grad) {
  DetectionJob job{maps,      targets,  units, parameters, Scales(targets, parameters.weighted, maps.batch),
                   {1, 1, 1}, with_grad};
  if (upstream != nullptr) {
    check_upstream(*upstream, maps.given[0][0]);
    const Tensor values = torch::stable::contiguous(converted(*upstream, ScalarType::Double));
    std::memcpy(job.upstream, values.const_data_ptr(), sizeof job.upstream);
  }
  return job.run();
}

// 0 times a gradient that is not finite is not 0.
void clear_where_nothing_flows(DetectionMaps& maps, const Tensor& upstream) {
  const Tensor values = torch::stable::contiguous(converted(upstream, ScalarType::Double));
  const auto* factors = static_cast<const double*>(values.const_data_ptr());
  for (int part = 0; part < kLossParts; ++part) {
    if (factors[part] != 0) continue;
    for (Tensor& grad : maps.grads[part]) torch::stable::zero_(grad);
  }
}

using Lists = std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>>;

std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>> detection_loss(
    std::vector<Tensor> cls_logits, std::vector<Tensor> box_regression, std::vector<Tensor> centerness,
    const Tensor& labels, const Tensor& ltrb, const Tensor& quality, const Tensor& totals,
    std::optional<Tensor> normalizers, std::vector<double> units, double alpha, double gamma,
    int64_t box_kind, double smooth, double eps, bool weighted, bool iou_quality, bool with_grad) {
  DetectionMaps maps = read_maps(cls_logits, box_regression, centerness, with_grad);
  const auto targets = read_targets(labels, ltrb, quality, totals, normalizers, maps);
  const auto parameters =
      read_parameters(units, maps.levels(), alpha, gamma, box_kind, smooth, eps, weighted, iou_quality);
  const Losses total = run(maps, targets, units, parameters, nullptr, with_grad);
  Tensor losses = new_empty(cls_logits[0], {kLossParts}, sum_type(cls_logits[0].scalar_type()));
  if (losses.scalar_type() == ScalarType::Double) {
    std::copy(total.of, total.of + kLossParts, static_cast<double*>(losses.mutable_data_ptr()));
  } else {
    std::copy(total.of, total.of + kLossParts, static_cast<float*>(losses.mutable_data_ptr()));
  }
  return {losses, maps.results(kClassification), maps.results(kBoxes), maps.results(kQuality)};
}

Lists detection_loss_backward(const Tensor& upstream, std::vector<Tensor> cls_logits,
                              std::vector<Tensor> box_regression, std::vector<Tensor> centerness,
                              const Tensor& labels, const Tensor& ltrb, const Tensor& quality,
                              const Tensor& totals, std::optional<Tensor> normalizers,
                              std::vector<double> units, double alpha, double gamma, int64_t box_kind,
                              double smooth, double eps, bool weighted, bool iou_quality) {
  DetectionMaps maps = read_maps(cls_logits, box_regression, centerness, true);
  const auto targets = read_targets(labels, ltrb, quality, totals, normalizers, maps);
  const auto parameters =
      read_parameters(units, maps.levels(), alpha, gamma, box_kind, smooth, eps, weighted, iou_quality);
  run(maps, targets, units, parameters, &upstream, true);
  clear_where_nothing_flows(maps, upstream);
  return {maps.results(kClassification), maps.results(kBoxes), maps.results(kQuality)};
}

template <class T>
void multiply(Tensor& t, double factor) {
  auto* p = static_cast<T*>(t.mutable_data_ptr());
  using Real = std::conditional_t<std::is_same_v<T, double>, double, float>;
  torch::stable::parallel_for(0, t.numel(), 1 << 15, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) p[i] = T(Real(p[i]) * Real(factor));
  });
}

// Gradients that stand in memory as they left the forward pass: nothing is to be done for the usual factor 1.
void detection_loss_rescale_(std::vector<Tensor> cls_grads, std::vector<Tensor> box_grads,
                             std::vector<Tensor> centerness_grads, const Tensor& upstream) {
  const std::vector<Tensor>* const lists[kLossParts] = {&cls_grads, &box_grads, &centerness_grads};
  check_rescaled(lists, upstream);
  double factors[kLossParts];
  const Tensor values = torch::stable::contiguous(converted(upstream, ScalarType::Double));
  std::memcpy(factors, values.const_data_ptr(), sizeof factors);
  for (int part = 0; part < kLossParts; ++part) {
    if (factors[part] == 1) continue;
    for (Tensor t : *lists[part]) {
      if (factors[part] == 0) {  // also where the gradient is not finite: nothing flows in
        torch::stable::zero_(t);
        continue;
      }
      switch (t.scalar_type()) {
        case ScalarType::Float:
          multiply<float>(t, factors[part]);
          break;
        case ScalarType::BFloat16:
          multiply<BFloat16>(t, factors[part]);
          break;
        case ScalarType::Half:
          multiply<Half>(t, factors[part]);
          break;
        default:
          multiply<double>(t, factors[part]);
      }
    }
  }
}

}  // namespace
}  // namespace fcos_fast

STABLE_TORCH_LIBRARY_IMPL(fcos_fast, CPU, m) {
  using namespace fcos_fast;
  m.impl("detection_loss", TORCH_BOX(&detection_loss));
  m.impl("detection_loss_backward", TORCH_BOX(&detection_loss_backward));
  m.impl("detection_loss_rescale_", TORCH_BOX(&detection_loss_rescale_));
}
