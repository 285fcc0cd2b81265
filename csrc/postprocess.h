// The front of postprocess: see math/postprocess.h.
#pragma once

#include <limits>

#include "checks.h"
#include "math/postprocess.h"

namespace fcos_fast {

struct PostprocessArguments {
  std::vector<math::PostprocessLevel> levels;
  math::PostprocessRule rule;
  std::vector<Tensor> maps;  // keeps what the levels point to
  Tensor sizes;              // (B, 2) of the type of the scores
  ScalarType dtype;          // of the logits
  ScalarType result;         // of boxes and scores
  int64_t batch;
  int64_t topk, max_detections;
  double iou_threshold;

  int64_t locations() const { return levels.empty() ? 0 : levels.back().first + levels.back().locations; }
};

// How a map lies in memory, if its locations are equally far apart.
inline std::optional<math::FeatureMap> as_it_lies(const Tensor& t) {
  const int64_t height = t.size(2), width = t.size(3);
  if (height > 1 && width > 1 && t.stride(2) != width * t.stride(3)) return std::nullopt;
  const int64_t location = width > 1 ? t.stride(3) : height > 1 ? t.stride(2) : 1;
  return math::FeatureMap{t.const_data_ptr(), t.stride(0), t.stride(1), location};
}

// `accepts` says which layouts the caller reads without a copy.
template <class Accepts>
math::FeatureMap read_map(PostprocessArguments& arguments, const Tensor& t, const Accepts& accepts) {
  auto map = as_it_lies(t);
  if (!map.has_value() || !accepts(*map, t)) {
    arguments.maps.push_back(torch::stable::contiguous(t));
    map = as_it_lies(arguments.maps.back());
  }
  return *map;
}

inline void check_maps(const std::vector<Tensor>& maps, const std::vector<Tensor>& logits, int64_t channels) {
  STD_TORCH_CHECK(maps.size() == logits.size(), "fcos_fast::postprocess: ", maps.size(), " maps for ",
                  logits.size(), " levels");
  for (size_t l = 0; l < maps.size(); ++l) {
    const Tensor &map = maps[l], &like = logits[l];
    const bool same_grid = map.dim() == 4 && like.dim() == 4 && map.size(0) == logits[0].size(0) &&
                           map.size(2) == like.size(2) && map.size(3) == like.size(3);
    STD_TORCH_CHECK(
        same_grid && map.size(1) == channels && map.scalar_type() == maps[0].scalar_type() &&
            is_floating_point(map.scalar_type()),
        "fcos_fast::postprocess: expected maps (B, C, H, W), (B, 4, H, W) and (B, 1, H, W) of one grid per "
        "level and one type");
  }
}

template <class Accepts>
PostprocessArguments read_postprocess(const std::vector<Tensor>& cls_logits,
                                      const std::vector<Tensor>& box_regression,
                                      const std::vector<Tensor>& centerness, const Tensor& sizes,
                                      const std::vector<double>& geometry, int64_t score,
                                      double score_threshold, bool threshold_on_score, bool multi_label,
                                      int64_t topk, bool topk_per_level, bool topk_by_classification,
                                      double iou_threshold, bool class_agnostic, int64_t max_detections,
                                      bool inclusive_boxes, bool clip_before_nms, bool drop_empty,
                                      const Accepts& accepts) {
  STD_TORCH_CHECK(!cls_logits.empty(), "fcos_fast::postprocess: no level");
  const char* op = "postprocess";
  check_range(op, "score", score, 0, int64_t(math::ScoreRule::kClassification));
  const auto rule = math::ScoreRule(score);
  const bool with_centerness = rule != math::ScoreRule::kClassification;
  STD_TORCH_CHECK(cls_logits[0].dim() == 4, "fcos_fast::postprocess: expected cls_logits (B, C, H, W)");
  const int64_t batch = cls_logits[0].size(0), classes = cls_logits[0].size(1);
  check_maps(cls_logits, cls_logits, classes);
  check_maps(box_regression, cls_logits, 4);
  if (with_centerness) check_maps(centerness, cls_logits, 1);
  STD_TORCH_CHECK(geometry.size() == 5 * cls_logits.size(),
                  "fcos_fast::postprocess: expected 5 numbers of geometry per level");
  for (const double g : geometry) check_number(op, "geometry", g, -INFINITY, INFINITY);
  STD_TORCH_CHECK(sizes.dim() == 2 && sizes.size(0) == batch && sizes.size(1) == 2,
                  "fcos_fast::postprocess: expected sizes (B, 2)");
  check_same_device(op, cls_logits[0], cls_logits, box_regression, sizes);
  if (with_centerness) check_same_device(op, cls_logits[0], centerness);
  STD_TORCH_CHECK(sizes.scalar_type() == ScalarType::Int || sizes.scalar_type() == ScalarType::Long ||
                      is_floating_point(sizes.scalar_type()),
                  "fcos_fast::postprocess: sizes are int32, int64 or floating-point numbers");
  check_number(op, "score_threshold", score_threshold, 0, 1);
  check_number(op, "iou_threshold", iou_threshold, 0, 1);
  check_range(op, "topk", topk, 1, std::numeric_limits<int64_t>::max());
  check_range(op, "max_detections", max_detections, 1, std::numeric_limits<int32_t>::max());

  PostprocessArguments a;
  a.dtype = cls_logits[0].scalar_type();
  a.result = sum_type(a.dtype);
  a.batch = batch;
  a.max_detections = max_detections;
  a.iou_threshold = iou_threshold;
  a.sizes = torch::stable::contiguous(converted(sizes, a.result));
  a.rule = {dtype_of(box_regression[0]),
            with_centerness ? dtype_of(centerness[0]) : Dtype::kFloat32,
            classes,
            rule,
            threshold_on_score,
            multi_label,
            topk_per_level,
            topk_by_classification,
            class_agnostic,
            inclusive_boxes,
            clip_before_nms,
            drop_empty,
            score_threshold};
  int64_t first = 0;
  for (size_t l = 0; l < cls_logits.size(); ++l) {
    const auto any = [](const math::FeatureMap&, const Tensor&) { return true; };
    const double* g = &geometry[5 * l];
    math::PostprocessLevel level{};
    level.logits = read_map(a, cls_logits[l], accepts);
    level.distances = read_map(a, box_regression[l], any);
    if (with_centerness) level.centerness = read_map(a, centerness[l], any);
    level.width = cls_logits[l].size(3);
    level.locations = cls_logits[l].size(2) * level.width;
    level.first = first;
    level.step_y = g[0], level.step_x = g[1], level.offset_y = g[2], level.offset_x = g[3], level.unit = g[4];
    first += level.locations;
    a.levels.push_back(level);
  }
  STD_TORCH_CHECK(first * classes < std::numeric_limits<uint32_t>::max(), "fcos_fast::postprocess: ", first,
                  " locations of ", classes, " classes; together less than 2^32 - 1 of an image");
  a.topk = std::min(topk, std::max<int64_t>(1, first * classes));
  return a;
}

struct PostprocessOutputs {
  Tensor boxes, scores, labels, counts;
};

inline PostprocessOutputs new_outputs(const Tensor& like, const PostprocessArguments& a) {
  return {new_empty(like, {a.batch, a.max_detections, 4}, a.result),
          new_empty(like, {a.batch, a.max_detections}, a.result),
          new_empty(like, {a.batch, a.max_detections}, ScalarType::Long),
          new_empty(like, {a.batch}, ScalarType::Long)};
}

}  // namespace fcos_fast
