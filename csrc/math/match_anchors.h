// RetinaNet's matching of anchors to boxes by IoU (Lin et al., 2017, section 4).
//
// match_anchors(anchors, boxes, labels, starts, high_threshold, low_threshold, low_quality, min_pos_iou)
//   anchors    (A, 4) float32 xyxy, shared by all images; boxes, labels, starts: see assign_targets.h
//   results    labels (B, A) int32: class, -1 background, -2 between the thresholds; matched (B, A) int32: row of
//              boxes, or -1 or -2 like the label; num_positive () float32
//   rule       an anchor is matched to the box with which it has the greatest IoU (the first of equals). It is
//              background if that IoU is below low_threshold, else ignored if it is below high_threshold.
//              A box claims the anchors whose IoU with it is the greatest that it has with any anchor, if that IoU is at
//              least min_pos_iou. As in torchvision, the greatest IoU of a box that overlaps no anchor is 0, attained
//              by every anchor. low_quality decides what a claimed anchor is matched to, at any IoU: "own_match" the
//              box with which it has the greatest IoU, "last_claim" the last box that claims it (mmdetection); "none":
//              no box claims an anchor
//   exact      IoU in float32, in the same order of operations as torchvision.ops.box_iou(boxes, anchors), thresholds
//              rounded to float32 as in torch: boundaries and ties are resolved identically
//   degenerate boxes with a NaN or without a positive, finite area are skipped; anchors with a NaN or zero area overlap
//              nothing; without boxes the whole image is background
//   order      only maxima and counts are accumulated: the same bits in any order
#pragma once

#include "../device.h"
#include "label.h"
#include "nms.h"

namespace fcos_fast::math {

// IoU of a box and an anchor whose intersection has width w > 0 and height h > 0.
template <class T>
FCOS_HOST_DEVICE T iou_of_overlap(T w, T h, T box_area, T anchor_area) {
  const T intersection = w * h;
  return intersection / (box_area + anchor_area - intersection);
}

// Length of the overlap along one axis; <= 0 if they do not overlap.
template <class T>
FCOS_HOST_DEVICE T overlap(T a1, T a2, T b1, T b2) {
  return min(a2, b2) - max(a1, b1);
}

FCOS_HOST_DEVICE bool may_match(const float box[4], float area) {
  return box[2] > box[0] && box[3] > box[1] && area > 0.0f && area < INFINITY;
}

enum class LowQuality { kNone, kOwnMatch, kLastClaim };
constexpr const char* kLowQualities[] = {"none", "own_match", "last_claim"};

struct MatchRule {
  float high, low;
  LowQuality low_quality;
  float min_pos_iou;
};

// Does a box whose greatest IoU with any anchor is `greatest` claim the anchors that attain it?
FCOS_HOST_DEVICE bool claims(float greatest, const MatchRule& rule) { return greatest >= rule.min_pos_iou; }

// The match of an anchor whose greatest IoU is `iou`, with box `row`; row is -1 if the image has no boxes. `claim` is the
// last box that claims the anchor, or -1.
FCOS_HOST_DEVICE int32_t decide_match(int32_t row, float iou, int32_t claim, const MatchRule& rule) {
  if (row < 0) return row;
  if (claim >= 0) return rule.low_quality == LowQuality::kLastClaim ? claim : row;
  if (iou < rule.low) return -1;
  return iou < rule.high ? -2 : row;
}

}  // namespace fcos_fast::math

namespace fcos_fast {

struct MatchAnchorsWork {
  const float* anchors;   // (A, 4)
  const float* boxes;     // (M, 4)
  const int64_t* labels;  // (M)
  const int64_t* starts;  // (B + 1)
  int64_t anchor_count, box_count, batch;
  math::MatchRule rule;
  int32_t* out_labels;   // (B, A)
  int32_t* out_matched;  // (B, A)
  float* num_positive;   // ()
};
void run_match_anchors(Cpu, const MatchAnchorsWork&);
void run_match_anchors(Cuda, const MatchAnchorsWork&);

}  // namespace fcos_fast
