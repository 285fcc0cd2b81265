// Device-independent part of detection_loss; see math/detection_loss.h.
#pragma once

#include "box_loss.h"
#include "focal_loss.h"
#include "math/detection_loss.h"

namespace fcos_fast {

using MapLists = std::tuple<std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>>;

struct DetectionMaps {
  std::vector<Tensor> given[kLossParts];
  std::vector<Tensor> maps[kLossParts];   // the given maps, or dense copies
  std::vector<Tensor> grads[kLossParts];  // like `maps`; empty without a gradient

  const Tensor& logits() const { return given[kClassification][0]; }

  // The gradients in the memory format of the given maps.
  MapLists results() const { return {results(kClassification), results(kBoxes), results(kQuality)}; }

 private:
  std::vector<Tensor> results(int part) const {
    std::vector<Tensor> results;
    for (size_t l = 0; l < grads[part].size(); ++l) {
      results.push_back(in_order_of(grads[part][l], given[part][l]));
    }
    return results;
  }
};

inline void check_detection_maps(const std::vector<Tensor>* const (&lists)[kLossParts]) {
  const char* op = "fcos_fast::detection_loss: ";
  const std::vector<Tensor>& cls_logits = *lists[kClassification];
  const size_t levels = cls_logits.size();
  STD_TORCH_CHECK(
      levels > 0 && lists[kBoxes]->size() == levels && lists[kQuality]->size() == levels, op,
      "expected the same number of levels, at least one, in cls_logits, box_regression and centerness");
  STD_TORCH_CHECK(levels <= kMaxLevels, op, "got ", levels, " levels; expected at most ", kMaxLevels);
  STD_TORCH_CHECK(cls_logits[0].dim() == 4, op, "expected cls_logits (B, C, H, W)");
  check_same_device("detection_loss", cls_logits[0], cls_logits, *lists[kBoxes], *lists[kQuality]);
  const int64_t channels[kLossParts] = {cls_logits[0].size(1), 4, 1};
  for (int part = 0; part < kLossParts; ++part) {
    for (size_t l = 0; l < levels; ++l) {
      const Tensor &map = (*lists[part])[l], &like = cls_logits[l];
      check_floating("detection_loss", "a map", map);
      STD_TORCH_CHECK(map.dim() == 4 && like.dim() == 4 && map.size(0) == cls_logits[0].size(0) &&
                          map.size(1) == channels[part] && map.size(2) == like.size(2) &&
                          map.size(3) == like.size(3),
                      op, "the maps of level ", l,
                      " differ in batch size, height or width, or have the wrong number of channels");
      STD_TORCH_CHECK(map.scalar_type() == (*lists[part])[0].scalar_type(), op,
                      "all levels of a map must have the same dtype");
    }
  }
}

template <class Device>
DetectionMaps read_maps(const DeviceOf<Device>& device, const std::vector<Tensor>& cls_logits,
                        const std::vector<Tensor>& box_regression, const std::vector<Tensor>& centerness,
                        bool with_grad) {
  const std::vector<Tensor>* const lists[kLossParts] = {&cls_logits, &box_regression, &centerness};
  DetectionMaps m;
  for (int part = 0; part < kLossParts; ++part) {
    for (const Tensor& map : *lists[part]) {
      device.check_dtype(map);
      m.given[part].push_back(map);
      m.maps[part].push_back(device.aligned(dense_map(map)));
      if (with_grad) m.grads[part].push_back(torch::stable::empty_like(m.maps[part].back()));
    }
  }
  return m;
}

struct DetectionTargets {
  Tensor labels, ltrb, quality, totals;
  std::optional<Tensor> normalizers;
};

inline DetectionTargets read_targets(const Tensor& labels, const Tensor& ltrb, const Tensor& quality,
                                     const Tensor& totals, const std::optional<Tensor>& normalizers,
                                     const std::vector<Tensor>& cls_logits) {
  check_same_device("detection_loss", cls_logits[0], labels, ltrb, quality, totals, normalizers);
  const int64_t batch = cls_logits[0].size(0);
  int64_t p = 0;
  for (const Tensor& logits : cls_logits) p += logits.size(2) * logits.size(3);
  auto is = [](const Tensor& t, ScalarType dtype, const std::vector<int64_t>& sizes) {
    return t.scalar_type() == dtype && sizes_of(t) == sizes;
  };
  STD_TORCH_CHECK(is(labels, ScalarType::Int, {batch, p}) && is(ltrb, ScalarType::Float, {batch, p, 4}) &&
                      is(quality, ScalarType::Float, {batch, p}) && is(totals, ScalarType::Float, {2}) &&
                      (!normalizers.has_value() || is(*normalizers, ScalarType::Float, {3, batch})),
                  "fcos_fast::detection_loss: expected labels (B, P) int32, ltrb (B, P, 4), quality (B, P), "
                  "totals (2,) and normalizers (3, B) float32");
  using torch::stable::contiguous;
  return {contiguous(labels), contiguous(ltrb), contiguous(quality), contiguous(totals),
          normalizers.has_value() ? std::optional<Tensor>(contiguous(*normalizers)) : std::nullopt};
}

// Arguments in the order of the schema.
inline DetectionLossParameters read_parameters(const std::vector<double>& units, size_t levels, double alpha,
                                               double gamma, const std::string& box_kind, double smooth,
                                               double eps, bool weighted, bool iou_quality) {
  STD_TORCH_CHECK(units.size() == levels, "fcos_fast::detection_loss: got ", units.size(),
                  " units; expected one per level (", levels, ")");
  constexpr double kLeast = std::numeric_limits<float>::min(), kMost = std::numeric_limits<float>::max();
  for (const double unit : units) check_number("detection_loss", "unit", unit, kLeast, kMost);
  return {focal(alpha, gamma), box_loss_parameters(box_kind, true, smooth, eps), weighted, iou_quality};
}

inline void check_upstream(const Tensor& upstream, const Tensor& like) {
  check_same_device("detection_loss", like, upstream);
  check_floating("detection_loss", "upstream", upstream);
  STD_TORCH_CHECK(upstream.dim() == 1 && upstream.size(0) == kLossParts,
                  "fcos_fast::detection_loss: expected upstream (3,)");
}

inline LevelMap level_map(const Tensor& map, std::vector<Tensor>& grads, size_t level) {
  const MapStrides strides = dense_map_strides(map);
  return {map.const_data_ptr(), grads.empty() ? nullptr : grads[level].mutable_data_ptr(),
          dtype_of(map),        strides.image,
          strides.channel,      strides.location};
}

inline DetectionLossWork detection_work(DetectionMaps& m, const DetectionTargets& targets,
                                        const std::vector<double>& units) {
  DetectionLossWork work{};
  work.batch = m.logits().size(0);
  work.classes = m.logits().size(1);
  for (size_t l = 0; l < units.size(); ++l) {
    DetectionLevel& level = work.levels[work.level_count++];
    const Tensor& logits = m.maps[kClassification][l];
    level.locations = logits.size(2) * logits.size(3);
    level.first_location = work.locations;
    level.unit = units[l];
    for (int part = 0; part < kLossParts; ++part) {
      level.maps[part] = level_map(m.maps[part][l], m.grads[part], l);
    }
    work.locations += level.locations;
  }
  work.labels = const_data<int32_t>(targets.labels);
  work.ltrb = const_data<float>(targets.ltrb);
  work.quality = const_data<float>(targets.quality);
  work.totals = const_data<float>(targets.totals);
  if (targets.normalizers.has_value()) work.normalizers = const_data<float>(*targets.normalizers);
  return work;
}

template <class Device>
std::tuple<Tensor, std::vector<Tensor>, std::vector<Tensor>, std::vector<Tensor>> detection_loss(
    std::vector<Tensor> cls_logits, std::vector<Tensor> box_regression, std::vector<Tensor> centerness,
    const Tensor& labels, const Tensor& ltrb, const Tensor& quality, const Tensor& totals,
    std::optional<Tensor> normalizers, std::vector<double> units, double alpha, double gamma,
    std::string box_kind, double smooth, double eps, bool weighted, bool iou_quality, bool with_grad) {
  check_detection_maps({&cls_logits, &box_regression, &centerness});
  DeviceOf<Device> device(cls_logits[0]);
  const auto targets = read_targets(labels, ltrb, quality, totals, normalizers, cls_logits);
  const auto parameters =
      read_parameters(units, cls_logits.size(), alpha, gamma, box_kind, smooth, eps, weighted, iou_quality);
  DetectionMaps maps = read_maps(device, cls_logits, box_regression, centerness, with_grad);
  DetectionLossWork work = detection_work(maps, targets, units);
  Tensor losses = new_empty(cls_logits[0], {kLossParts}, sum_type(cls_logits[0].scalar_type()));
  work.losses = losses.mutable_data_ptr();
  run_detection_loss(*device, parameters, work);
  return std::tuple_cat(std::make_tuple(losses), maps.results());
}

// A part without gradients may be empty.
inline RescaleWork rescale_work(const std::vector<Tensor>* const (&parts)[kLossParts],
                                const Tensor& upstream) {
  RescaleWork work{};
  work.upstream = upstream.const_data_ptr();
  work.upstream_dtype = dtype_of(upstream);
  for (int part = 0; part < kLossParts; ++part) {
    for (Tensor grad : *parts[part]) {
      work.gradients[work.count++] = {grad.mutable_data_ptr(), grad.numel(), dtype_of(grad), part};
    }
  }
  return work;
}

template <class Device>
MapLists detection_loss_backward(const Tensor& upstream, std::vector<Tensor> cls_logits,
                                 std::vector<Tensor> box_regression, std::vector<Tensor> centerness,
                                 const Tensor& labels, const Tensor& ltrb, const Tensor& quality,
                                 const Tensor& totals, std::optional<Tensor> normalizers,
                                 std::vector<double> units, double alpha, double gamma, std::string box_kind,
                                 double smooth, double eps, bool weighted, bool iou_quality) {
  check_detection_maps({&cls_logits, &box_regression, &centerness});
  check_upstream(upstream, cls_logits[0]);
  DeviceOf<Device> device(cls_logits[0]);
  const auto targets = read_targets(labels, ltrb, quality, totals, normalizers, cls_logits);
  const auto parameters =
      read_parameters(units, cls_logits.size(), alpha, gamma, box_kind, smooth, eps, weighted, iou_quality);
  DetectionMaps maps = read_maps(device, cls_logits, box_regression, centerness, true);
  const ScalarType sums = sum_type(cls_logits[0].scalar_type());
  const Tensor factors = torch::stable::contiguous(converted(upstream, sums));
  DetectionLossWork work = detection_work(maps, targets, units);
  work.upstream = factors.const_data_ptr();
  run_detection_loss(*device, parameters, work);
  // The product of 0 and a non-finite gradient is NaN, so these gradients are set to 0.
  RescaleWork zeros = rescale_work({&maps.grads[0], &maps.grads[1], &maps.grads[2]}, factors);
  zeros.only_zero = true;
  run_rescale(*device, zeros);
  return maps.results();
}

template <class Device>
void detection_loss_rescale_(std::vector<Tensor> cls_grads, std::vector<Tensor> box_grads,
                             std::vector<Tensor> centerness_grads, const Tensor& upstream) {
  const std::vector<Tensor>* const lists[kLossParts] = {&cls_grads, &box_grads, &centerness_grads};
  const char* op = "detection_loss_rescale_";
  for (const auto* list : lists) {
    STD_TORCH_CHECK(list->size() <= kMaxLevels, "fcos_fast::detection_loss_rescale_: got ", list->size(),
                    " levels; expected at most ", kMaxLevels);
    for (const Tensor& grad : *list) {
      check_upstream(upstream, grad);
      check_floating(op, "a gradient", grad);
      DeviceOf<Device>::check_dtype(grad);
      STD_TORCH_CHECK(is_dense(grad), "fcos_fast::detection_loss_rescale_: expected dense gradients");
    }
  }
  if (cls_grads.empty() && box_grads.empty() && centerness_grads.empty()) return;
  DeviceOf<Device> device(upstream);
  const ScalarType dtype = sum_type(upstream.scalar_type());
  const Tensor factors = torch::stable::contiguous(converted(upstream, dtype));
  run_rescale(*device, rescale_work(lists, factors));
}

}  // namespace fcos_fast
