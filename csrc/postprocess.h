// Device-independent part of postprocess; see math/postprocess.h.
#pragma once

#include <limits>

#include "device_of.h"
#include "math/postprocess.h"
#include "memory_format.h"

namespace fcos_fast {

inline void check_maps(const std::vector<Tensor>& maps, const std::vector<Tensor>& logits, int64_t channels) {
  STD_TORCH_CHECK(maps.size() == logits.size(), "fcos_fast::postprocess: got ", maps.size(), " maps for ",
                  logits.size(), " levels");
  for (size_t l = 0; l < maps.size(); ++l) {
    const Tensor &map = maps[l], &like = logits[l];
    const bool same_grid = map.dim() == 4 && like.dim() == 4 && map.size(0) == logits[0].size(0) &&
                           map.size(2) == like.size(2) && map.size(3) == like.size(3);
    STD_TORCH_CHECK(
        same_grid && map.size(1) == channels && map.scalar_type() == maps[0].scalar_type() &&
            is_floating_point(map.scalar_type()),
        "fcos_fast::postprocess: expected maps (B, C, H, W), (B, 4, H, W) and (B, 1, H, W) with the same size per "
        "level and the same dtype on all levels");
  }
}

inline void check_postprocess(const std::vector<Tensor>& cls_logits,
                              const std::vector<Tensor>& box_regression,
                              const std::vector<Tensor>& centerness, const Tensor& sizes,
                              const std::vector<double>& geometry) {
  const char* op = "postprocess";
  check_range(op, "number of levels", int64_t(cls_logits.size()), 1, math::kMaxLevels);
  const Tensor& first = cls_logits[0];
  STD_TORCH_CHECK(first.dim() == 4, "fcos_fast::postprocess: expected cls_logits (B, C, H, W)");
  check_range(op, "number of images", first.size(0), 0, 65535);
  check_maps(cls_logits, cls_logits, first.size(1));
  check_maps(box_regression, cls_logits, 4);
  if (!centerness.empty()) check_maps(centerness, cls_logits, 1);
  STD_TORCH_CHECK(geometry.size() == 5 * cls_logits.size(), "fcos_fast::postprocess: got ", geometry.size(),
                  " numbers of geometry; expected 5 per level");
  for (const double g : geometry) check_number(op, "geometry", g, -INFINITY, INFINITY);
  STD_TORCH_CHECK(sizes.dim() == 2 && sizes.size(0) == first.size(0) && sizes.size(1) == 2,
                  "fcos_fast::postprocess: expected sizes (B, 2)");
  STD_TORCH_CHECK(sizes.scalar_type() == ScalarType::Int || sizes.scalar_type() == ScalarType::Long ||
                      is_floating_point(sizes.scalar_type()),
                  "fcos_fast::postprocess: expected int32, int64 or floating-point sizes");
  check_same_device(op, first, cls_logits, box_regression, centerness, sizes);
}

inline void check_rule(const math::PostprocessRule& rule) {
  const char* op = "postprocess";
  check_number(op, "score_threshold", rule.score_threshold, 0, 1);
  check_number(op, "iou_threshold", rule.iou_threshold, 0, 1);
  check_range(op, "topk", rule.topk, 1, std::numeric_limits<int64_t>::max());
  check_range(op, "max_detections", rule.max_detections, 1, std::numeric_limits<int32_t>::max());
}

// ---- memory formats ----

// The map without a copy, if its locations have a constant stride.
inline std::optional<math::FeatureMap> strided_view(const Tensor& map) {
  const auto strides = map_strides(map);
  if (!strides.has_value()) return std::nullopt;
  return math::FeatureMap{map.const_data_ptr(), strides->image, strides->channel, strides->location};
}

// Can the kernels read these logits without a copy? The CPU needs contiguous locations or classes; a GPU also needs
// each image to be dense.
inline bool is_scannable(Cpu, const math::FeatureMap& map, const Tensor&) {
  return map.location_stride == 1 || map.channel_stride == 1;
}
inline bool is_scannable(const Cuda&, const math::FeatureMap& map, const Tensor& t) {
  const int64_t classes = t.size(1), locations = t.size(2) * t.size(3);
  return (map.location_stride == 1 && (map.channel_stride == locations || classes == 1)) ||
         (map.channel_stride == 1 && map.location_stride == classes);
}

// `copies` keeps a copy alive.
template <class Accepts>
math::FeatureMap feature_map(const Tensor& t, const Accepts& accepts, std::vector<Tensor>& copies) {
  auto map = strided_view(t);
  if (!map.has_value() || !accepts(*map, t)) {
    copies.push_back(torch::stable::contiguous(t));
    map = strided_view(copies.back());
  }
  return *map;
}

template <class Device>
std::vector<math::PostprocessLevel<double>> levels_of(
    const Device& device, const std::vector<Tensor>& cls_logits, const std::vector<Tensor>& box_regression,
    const std::vector<Tensor>& centerness, const std::vector<double>& geometry, std::vector<Tensor>& copies) {
  const auto scannable = [&](const math::FeatureMap& map, const Tensor& t) {
    return is_scannable(device, map, t);
  };
  const auto any = [](const math::FeatureMap&, const Tensor&) { return true; };
  std::vector<math::PostprocessLevel<double>> levels;
  int64_t first = 0;
  for (size_t l = 0; l < cls_logits.size(); ++l) {
    const double* g = &geometry[5 * l];
    math::PostprocessLevel<double> level{};
    level.logits = feature_map(cls_logits[l], scannable, copies);
    level.distances = feature_map(box_regression[l], any, copies);
    if (!centerness.empty()) level.centerness = feature_map(centerness[l], any, copies);
    level.width = cls_logits[l].size(3);
    level.locations = cls_logits[l].size(2) * level.width;
    level.first = first;
    level.step_y = g[0], level.step_x = g[1], level.offset_y = g[2], level.offset_x = g[3], level.unit = g[4];
    first += level.locations;
    levels.push_back(level);
  }
  return levels;
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> postprocess(
    const std::vector<Tensor>& cls_logits, const std::vector<Tensor>& box_regression,
    std::vector<Tensor> centerness, const Tensor& sizes, const std::vector<double>& geometry,
    std::string score, double score_threshold, bool threshold_on_score, bool multi_label, int64_t topk,
    bool topk_per_level, bool topk_by_classification, double iou_threshold, bool class_agnostic,
    int64_t max_detections, bool inclusive_boxes, bool clip_before_nms, bool drop_empty) {
  using math::ScoreRule;
  const auto score_rule = read_choice<ScoreRule>("postprocess", "score", score, math::kScoreRules);
  if (score_rule == ScoreRule::kClassification) {
    centerness.clear();
  } else {
    STD_TORCH_CHECK(!centerness.empty(), "fcos_fast::postprocess: expected centerness maps for score '",
                    score, "'");
  }
  check_postprocess(cls_logits, box_regression, centerness, sizes, geometry);
  const Tensor& first = cls_logits[0];
  math::PostprocessRule rule;
  rule.score = score_rule;
  rule.score_threshold = score_threshold;
  rule.threshold_on_score = threshold_on_score;
  rule.multi_label = multi_label;
  rule.topk = topk;
  rule.topk_per_level = topk_per_level;
  rule.topk_by_classification = topk_by_classification;
  rule.iou_threshold = iou_threshold;
  rule.class_agnostic = class_agnostic;
  rule.max_detections = max_detections;
  rule.inclusive_boxes = inclusive_boxes;
  rule.clip_before_nms = clip_before_nms;
  rule.drop_empty = drop_empty;
  rule.classes = first.size(1);
  rule.logits_dtype = dtype_of(first);
  rule.distances_dtype = dtype_of(box_regression[0]);
  rule.centerness_dtype = centerness.empty() ? Dtype::kFloat32 : dtype_of(centerness[0]);
  check_rule(rule);

  DeviceOf<Device> device(first);
  const int64_t batch = first.size(0);
  const ScalarType real = sum_type(first.scalar_type());
  Tensor boxes = new_empty(first, {batch, max_detections, 4}, real);
  Tensor scores = new_empty(first, {batch, max_detections}, real);
  Tensor labels = new_empty(first, {batch, max_detections}, ScalarType::Long);
  Tensor counts = new_empty(first, {batch}, ScalarType::Long);
  std::vector<Tensor> copies;
  const auto levels = levels_of(*device, cls_logits, box_regression, centerness, geometry, copies);
  const int64_t pairs = (levels.back().first + levels.back().locations) * rule.classes;
  STD_TORCH_CHECK(pairs < std::numeric_limits<uint32_t>::max(), "fcos_fast::postprocess: got ", pairs,
                  " (location, class) pairs per image; expected fewer than 2^32 - 1");
  rule.topk = std::min(topk, std::max<int64_t>(1, pairs));
  const Tensor limits = torch::stable::contiguous(converted(sizes, real));
  if (batch > 0) {
    run_postprocess(
        *device, {levels, rule, batch, limits.const_data_ptr(), boxes.mutable_data_ptr(),
                  scores.mutable_data_ptr(), mutable_data<int64_t>(labels), mutable_data<int64_t>(counts)});
  }
  return {boxes, scores, labels, counts};
}

}  // namespace fcos_fast
