// Target assignment: which ground-truth box each location predicts.
//
// assign_targets(boxes, labels, starts, sizes, geometry, range_test, sampling, tie_break, radius)
//   boxes      (M, 4) float32, xyxy in pixels, the boxes of all images concatenated; labels (M,) int64
//   starts     (B + 1,) int64: image b has the rows [starts[b], starts[b + 1])
//   sizes      height, width per level
//   geometry   stride, step y, step x, offset y, offset x, lower, upper per level, in pixels
//   results    labels (B, P) int32 (see label.h), -1 background; matched (B, P) int32 row of boxes or -1;
//              ltrb (B, P, 4) float32 in pixels, 0 if unmatched; centerness (B, P) float32; totals (2,) float32: number
//              of positive locations, sum of their centerness (added in float64 in a fixed order)
//   rules      fcos_fast/assignment.py documents the choices; comparisons are float32, in the same order of operations
//              as the published implementations, so boundaries and ties are resolved identically
//   degenerate boxes with zero area, with a NaN, or of 1e8 pixels^2 or more are never assigned; no gradient
#pragma once

#include <algorithm>

#include "centerness.h"
#include "label.h"

namespace fcos_fast::math {

enum class RangeTest { kClosed, kOpen, kLeftOpen };
constexpr const char* kRangeTests[] = {"closed", "open", "left_open"};
enum class Sampling { kBox, kCenterClipped, kCenter, kCircle };
constexpr const char* kSamplings[] = {"box", "center_clipped", "center", "circle"};
enum class TieBreak { kArea, kQuantizedArea };
constexpr const char* kTieBreaks[] = {"area", "quantized_area"};

struct AssignmentRule {
  RangeTest range_test;
  Sampling sampling;
  TieBreak tie_break;
};

struct AssignmentLevel {
  int32_t height, width;
  int64_t first;  // index of the level's first location among all levels
  float step_y, step_x, offset_y, offset_x;
  float reach;  // center sampling radius in pixels
  float lower, upper;
};

constexpr float kMaxArea = 1e8f;

FCOS_HOST_DEVICE float location_x(const AssignmentLevel& level, int32_t j) {
  return level.offset_x + level.step_x * float(j);
}
FCOS_HOST_DEVICE float location_y(const AssignmentLevel& level, int32_t i) {
  return level.offset_y + level.step_y * float(i);
}

FCOS_HOST_DEVICE void distances(float x, float y, const float box[4], float ltrb[4]) {
  ltrb[0] = x - box[0];
  ltrb[1] = y - box[1];
  ltrb[2] = box[2] - x;
  ltrb[3] = box[3] - y;
}

FCOS_HOST_DEVICE float smallest(const float d[4]) { return min(min(d[0], d[1]), min(d[2], d[3])); }
FCOS_HOST_DEVICE float largest(const float d[4]) { return max(max(d[0], d[1]), max(d[2], d[3])); }

// Can the location be assigned to the box, regardless of other boxes?
FCOS_HOST_DEVICE bool can_assign(float x, float y, const float box[4], const AssignmentLevel& level,
                                 const AssignmentRule& rule) {
  float ltrb[4];
  distances(x, y, box, ltrb);
  if (!(smallest(ltrb) > 0.0f)) return false;

  const float longest = largest(ltrb);
  const bool above = rule.range_test == RangeTest::kClosed ? longest >= level.lower : longest > level.lower;
  const bool below = rule.range_test == RangeTest::kOpen ? longest < level.upper : longest <= level.upper;
  if (!above || !below) return false;

  const float cx = (box[0] + box[2]) / 2.0f, cy = (box[1] + box[3]) / 2.0f;
  switch (rule.sampling) {
    case Sampling::kBox:
      return true;
    case Sampling::kCenterClipped: {
      // The location is inside the box, so only the four sides of the unclipped square remain to be checked.
      return x - (cx - level.reach) > 0.0f && y - (cy - level.reach) > 0.0f &&
             (cx + level.reach) - x > 0.0f && (cy + level.reach) - y > 0.0f;
    }
    case Sampling::kCenter:
      return max(abs(x - cx), abs(y - cy)) < level.reach;
    case Sampling::kCircle:
      return sqrt((x - cx) * (x - cx) + (y - cy) * (y - cy)) < level.reach;
  }
  return false;
}

// False only if no location of the level can be assigned to the box: a cheap early exit.
FCOS_HOST_DEVICE bool level_can_assign(const float box[4], const AssignmentLevel& level) {
  const float w = box[2] - box[0], h = box[3] - box[1];
  if (!(w > 0.0f) || !(h > 0.0f)) return false;
  // Inside a box, the greatest distance is between half its longer side and its longer side.
  const float side = max(w, h), slack = 1e-4f * side + 1e-3f;
  return 0.5f * side - slack <= level.upper && side + slack >= level.lower;
}

// The box's sampling region along x (axis 0) or y (axis 1). Up to rounding, no location outside it can be assigned.
FCOS_HOST_DEVICE void sampling_region(const float box[4], const AssignmentLevel& level,
                                      const AssignmentRule& rule, int axis, float* low, float* high) {
  *low = box[axis];
  *high = box[axis + 2];
  if (rule.sampling == Sampling::kBox) return;
  const float center = (*low + *high) / 2.0f;
  *low = max(*low, center - level.reach);
  *high = min(*high, center + level.reach);
}

// The box with the greatest preference wins (the first of equals); it must exceed no_preference().
FCOS_HOST_DEVICE float preference(const float box[4], const AssignmentRule& rule) {
  const float area = (box[2] - box[0]) * (box[3] - box[1]);
  return rule.tie_break == TieBreak::kQuantizedArea ? kMaxArea - area : -area;
}
FCOS_HOST_DEVICE float no_preference(const AssignmentRule& rule) {
  return rule.tie_break == TieBreak::kQuantizedArea ? 0.0f : -kMaxArea;
}

}  // namespace fcos_fast::math

namespace fcos_fast {

struct AssignTargetsWork {
  const float* boxes;     // (M, 4)
  const int64_t* labels;  // (M)
  const int64_t* starts;  // (B + 1)
  int64_t box_count, batch, locations;
  const math::AssignmentLevel* levels;  // on the host
  int level_count;
  math::AssignmentRule rule;
  int32_t* out_labels;    // (B, P)
  int32_t* out_matched;   // (B, P)
  float* out_ltrb;        // (B, P, 4)
  float* out_centerness;  // (B, P)
  float* out_totals;      // (2)
};
void run_assign_targets(Cpu, const AssignTargetsWork&);
void run_assign_targets(Cuda, const AssignTargetsWork&);

}  // namespace fcos_fast
