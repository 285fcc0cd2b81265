// RetinaNet's matching of anchors and boxes by their IoU (Lin et al., 2017, section 4).
//
// match_anchors(anchors, boxes, labels, starts, high_threshold, low_threshold, allow_low_quality)
//   anchors    (A, 4) float32 xyxy, shared by the images; boxes, labels, starts: see assign_targets.h
//   results    labels (B, A) int32: class, -1 background, -2 between the thresholds; matched (B, A) int32: row of boxes,
//              or -1 or -2 alike; num_positive () float32
//   rule       an anchor takes the box of its greatest IoU, the first of equals: if that is below low_threshold it is
//              background, else if it is below high_threshold it is ignored. allow_low_quality: an anchor whose IoU with
//              any box equals the greatest that this box has with any anchor keeps its own box whatever its IoU is. As in
//              torchvision a box that overlaps no anchor has the greatest IoU 0, with every anchor.
//   exact      IoU in float32, operation by operation as torchvision.ops.box_iou(boxes, anchors), thresholds rounded to
//              float32 as torch rounds them: boundaries and ties fall alike
//   degenerate a box without a positive and finite area, or with a NaN, takes part in nothing; an anchor without an area
//              overlaps nothing, and one with a NaN counts as one; an image without boxes is background
//   order      there are only maxima and counts: the same bits for any order
#pragma once

#include "../device.h"
#include "label.h"
#include "nms.h"

namespace fcos_fast::math {

// IoU of `box` (x1, y1, x2, y2, area) and the anchor, for w and h of their intersection above 0.
template <class T>
FCOS_HOST_DEVICE T iou_of_overlap(T w, T h, T box_area, T anchor_area) {
  const T intersection = w * h;
  return intersection / (box_area + anchor_area - intersection);
}

// Along one axis; not above 0 where they do not overlap.
template <class T>
FCOS_HOST_DEVICE T overlap(T a1, T a2, T b1, T b2) {
  return min(a2, b2) - max(a1, b1);
}

FCOS_HOST_DEVICE bool may_match(const float box[4], float area) {
  return box[2] > box[0] && box[3] > box[1] && area > 0.0f && area < INFINITY;
}

struct MatchThresholds {
  float high, low;
};

// The result for an anchor whose greatest IoU is `iou`, with box `row`; row -1: there is no box.
FCOS_HOST_DEVICE int32_t decide_match(int32_t row, float iou, bool low_quality, const MatchThresholds& t) {
  if (row < 0 || low_quality) return row;
  if (iou < t.low) return -1;
  return iou < t.high ? -2 : row;
}

}  // namespace fcos_fast::math

namespace fcos_fast {

struct MatchAnchorsWork {
  const float* anchors;   // (A, 4)
  const float* boxes;     // (M, 4)
  const int64_t* labels;  // (M)
  const int64_t* starts;  // (B + 1)
  int64_t anchor_count, box_count, batch;
  math::MatchThresholds thresholds;
  bool allow_low_quality;
  int32_t* out_labels;   // (B, A)
  int32_t* out_matched;  // (B, A)
  float* num_positive;   // ()
};
void run_match_anchors(Cpu, const MatchAnchorsWork&);
void run_match_anchors(Cuda, const MatchAnchorsWork&);

}  // namespace fcos_fast
