// From head outputs to detections.
//
// postprocess(cls_logits, box_regression, centerness, sizes, ...)
//   cls_logits (B, C, H, W), box_regression (B, 4, H, W) ltrb, centerness (B, 1, H, W) logits, one of each per level
//   sizes      (B, 2) height and width of each image; boxes are clipped to it
//   candidates all (location, class) pairs if `multi_label`, else one per location: the class with the greatest logit
//              (the lowest of equals; NaN is skipped). A candidate passes if its score, or its classification
//              probability, is above score_threshold; NaN never passes
//   score      sqrt(classification * centerness), their product, or the classification; in float32 (float64)
//   top-k      the candidates with the highest score, or classification, per level or over all levels of an image; ties
//              go to the lower index in (level, location, class) order
//   box        location -+ unit * distance, clipped to [0, width] x [0, height] (less 1 if `inclusive_boxes`) before
//              NMS, or after it; NaN propagates
//   nms        as nms_padded (math/nms.h) by score, with the classes as labels unless `class_agnostic`; x2 and y2 are
//              one greater if `inclusive_boxes`
//   empty      with `drop_empty`, candidates whose box in NMS has zero area (or a NaN) are dropped after the top-k:
//              they suppress nothing and are not counted among the D
//   result     boxes (B, D, 4), scores (B, D), labels (B, D) int64, counts (B,) int64; padded with 0, 0, -1. The shapes
//              do not depend on the data, so CUDA never synchronizes
//   exact      one float32 formula for CPU and CUDA, without library functions or fused operations: both produce the
//              same bits, for any number of threads
#pragma once

#include <vector>

#include "element.h"
#include "nms.h"

namespace fcos_fast::math {

constexpr int kMaxLevels = 16;

enum class ScoreRule { kSqrt, kProduct, kClassification };
constexpr const char* kScoreRules[] = {"sqrt", "product", "classification"};

// A feature map (B, channels, H, W) whose locations, in row-major order, have a constant stride. Strides in elements.
struct FeatureMap {
  const void* data;
  int64_t image_stride, channel_stride, location_stride;
};

template <class Number>
struct PostprocessLevel {
  FeatureMap logits, distances, centerness;  // centerness is null if no score needs it
  int64_t first, locations;  // index of the first location among all levels; number of locations
  int64_t width;
  Number step_y, step_x, offset_y, offset_x, unit;
};

inline PostprocessLevel<float> with_float32(const PostprocessLevel<double>& l) {
  return {l.logits,        l.distances,     l.centerness,      l.first,           l.locations,  l.width,
          float(l.step_y), float(l.step_x), float(l.offset_y), float(l.offset_x), float(l.unit)};
}

struct PostprocessRule {
  ScoreRule score;
  double score_threshold;
  bool threshold_on_score, multi_label;
  int64_t topk;
  bool topk_per_level, topk_by_classification;
  double iou_threshold;
  bool class_agnostic;
  int64_t max_detections;
  bool inclusive_boxes, clip_before_nms, drop_empty;
  int64_t classes;
  Dtype logits_dtype, distances_dtype, centerness_dtype;
};

}  // namespace fcos_fast::math

namespace fcos_fast {

// Sizes and results are float32 (float64 for float64 logits).
struct PostprocessWork {
  std::vector<math::PostprocessLevel<double>> levels;  // at most kMaxLevels
  math::PostprocessRule rule;
  int64_t batch;      // at least 1
  const void* sizes;  // (B, 2)
  void* boxes;        // (B, max_detections, 4)
  void* scores;       // (B, max_detections)
  int64_t* labels;    // (B, max_detections)
  int64_t* counts;    // (B)
};
void run_postprocess(Cpu, const PostprocessWork&);
void run_postprocess(Cuda, const PostprocessWork&);

}  // namespace fcos_fast

namespace fcos_fast::math {

template <class T>
FCOS_HOST_DEVICE T probability(T x) {
  return T(1) / (T(1) + exp(-x));
}

// A lower bound of the logits of candidates, with a margin for the rounding of the scores. Logits above it still go
// through the exact comparison.
inline double lowest_logit(const PostprocessRule& rule) {
  const double threshold = rule.score_threshold;
  const bool of_sqrt = rule.threshold_on_score && rule.score == ScoreRule::kSqrt;
  const double p = (of_sqrt ? threshold * threshold : threshold) * (1 - 1e-5);
  if (threshold < 1e-12) return -INFINITY;  // float32 scores are inexact below
  return std::log(p / (1 - p)) - 1e-4;
}

// The score, or -1 if the pair does not pass the threshold.
template <class Real, class Number>
FCOS_HOST_DEVICE Real score_of_logit(Real logit, const PostprocessLevel<Number>& level, int64_t image,
                                     int64_t location, const PostprocessRule& rule) {
  const Real classification = probability(logit);
  Real score = classification;
  if (rule.score != ScoreRule::kClassification) {
    const FeatureMap& map = level.centerness;
    score =
        score * probability(read_element<Real>(map.data, rule.centerness_dtype,
                                               image * map.image_stride + location * map.location_stride));
    if (rule.score == ScoreRule::kSqrt) score = sqrt(score);
  }
  const bool passes = (rule.threshold_on_score ? score : classification) > Real(rule.score_threshold);
  return passes && score >= Real(0) ? score : Real(-1);
}

// The value that the top-k compares.
template <class Real>
FCOS_HOST_DEVICE Real rank_of(Real score, Real logit, const PostprocessRule& rule) {
  return rule.topk_by_classification ? probability(logit) : score;
}

// The level, location and class that a key's index encodes.
struct Place {
  int32_t level;
  uint32_t location, c;  // location within the level
};

template <class Number>
FCOS_HOST_DEVICE Place place_of(const PostprocessLevel<Number>* levels, int64_t count,
                                const PostprocessRule& rule, uint32_t index) {
  const uint32_t classes = uint32_t(rule.classes), location = index / classes;
  int32_t l = 0;
  while (l + 1 < count && location >= levels[l + 1].first) ++l;
  return {l, uint32_t(location - levels[l].first), index - location * classes};
}

// Converts a key by classification to the key by score.
template <class Key, class Number>
FCOS_HOST_DEVICE Key key_by_score(const PostprocessLevel<Number>* levels, int64_t count,
                                  const PostprocessRule& rule, int64_t image, Key key) {
  using Real = decltype(score_of(key));
  const Place place = place_of(levels, count, rule, index_of(key));
  const FeatureMap& map = levels[place.level].logits;
  const Real logit = read_element<Real>(
      map.data, rule.logits_dtype,
      image * map.image_stride + place.c * map.channel_stride + place.location * map.location_stride);
  return make_key(score_of_logit(logit, levels[place.level], image, place.location, rule), index_of(key));
}

template <class Real>
FCOS_HOST_DEVICE Real clipped(Real x, Real limit) {  // NaN propagates
  const Real positive = x < Real(0) ? Real(0) : x;
  return positive > limit ? limit : positive;
}

// x1, y1, x2, y2 in pixels.
template <class Real, class Number>
FCOS_HOST_DEVICE void decode_box(const PostprocessLevel<Number>& level, int64_t image, int64_t location,
                                 const PostprocessRule& rule, Real box[4]) {
  const FeatureMap& map = level.distances;
  const int64_t at = image * map.image_stride + location * map.location_stride;
  const int64_t row = location / level.width, column = location - row * level.width;
  const Real x = Real(level.offset_x) + Real(level.step_x) * Real(column);
  const Real y = Real(level.offset_y) + Real(level.step_y) * Real(row);
  for (int side = 0; side < 4; ++side) {
    const Real distance =
        read_element<Real>(map.data, rule.distances_dtype, at + side * map.channel_stride) * Real(level.unit);
    const Real from = side % 2 == 0 ? x : y;
    box[side] = side < 2 ? from - distance : from + distance;
  }
}

template <class Real>
FCOS_HOST_DEVICE void clip_box(const PostprocessRule& rule, const Real* size, Real box[4]) {
  const Real last_pixel = rule.inclusive_boxes ? Real(1) : Real(0);
  for (int side = 0; side < 4; ++side) {
    box[side] = clipped(box[side], size[side % 2 == 0 ? 1 : 0] - last_pixel);
  }
}

// Can a candidate with this box (in NMS coordinates) be kept?
template <class Real>
FCOS_HOST_DEVICE bool may_be_kept(const PostprocessRule& rule, const Real box[4]) {
  return !rule.drop_empty || (box[2] > box[0] && box[3] > box[1]);
}

}  // namespace fcos_fast::math
