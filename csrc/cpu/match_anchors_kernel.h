// Compares one box with a block of anchors.
#pragma once

#include "../math/match_anchors.h"
#include "vec.h"

namespace fcos_fast::FCOS_SIMD_NAMESPACE {

// Calls f(first anchor, IoUs) for every SIMD register of anchors with at least one overlap.
template <class F>
FCOS_INLINE void for_each_overlap(const AnchorBlock& anchors, const float* box, const F& f) {
  const Vec x1(box[0]), y1(box[1]), x2(box[2]), y2(box[3]), area(box[4]), zero(0.0f);
  for (int i = 0; i < AnchorBlock::kSize; i += kFloats) {
    auto column = [&](const float* values) FCOS_LAMBDA { return load(values + i, kFloats); };
    const Vec w = math::overlap(x1, x2, column(anchors.x1), column(anchors.x2));
    const Vec h = math::overlap(y1, y2, column(anchors.y1), column(anchors.y2));
    const Vec::Mask overlaps = (w > zero) & (h > zero);
    if (any(overlaps)) f(i, select(overlaps, math::iou_of_overlap(w, h, area, column(anchors.area)), zero));
  }
}

inline float match_box(const AnchorBlock& anchors, const float* box, int32_t row, float* best,
                       int32_t* matched) {
  Vec greatest(0.0f);
  for_each_overlap(anchors, box, [&](int i, Vec iou) FCOS_LAMBDA {
    const Vec before = load(best + i, kFloats);
    const Vec::Mask better = iou > before;
    store(best + i, select(better, iou, before), kFloats);
    IntLanes rows;
    std::memcpy(&rows, matched + i, sizeof(rows));
    rows = better.m ? IntLanes{} + row : rows;
    std::memcpy(matched + i, &rows, sizeof(rows));
    greatest = math::max(iou, greatest);
  });
  float result = 0;
  for (int i = 0; i < kFloats; ++i) result = math::max(greatest.v[i], result);
  return result;
}

inline void claim_equal(const AnchorBlock& anchors, const float* box, int32_t row, float iou,
                        int32_t* claims) {
  for_each_overlap(anchors, box, [&](int i, Vec ious) FCOS_LAMBDA {
    for (int lane = 0; lane < kFloats; ++lane) {
      if (ious.v[lane] == iou) claims[i + lane] = row;
    }
  });
}

}  // namespace fcos_fast::FCOS_SIMD_NAMESPACE
