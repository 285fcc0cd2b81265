// The inner loop of non-maximum suppression: one box against the boxes kept so far.
#pragma once

#include "../math/nms.h"
#include "vec.h"

namespace fcos_fast::FCOS_SIMD_NAMESPACE {

template <class V>
bool overlaps_any(const BoxColumns& kept, int64_t begin, int64_t end, const void* box_pointer,
                  double threshold) {
  using Real = typename V::Real;
  const Real* box = static_cast<const Real*>(box_pointer);
  const V x1(box[0]), y1(box[1]), x2(box[2]), y2(box[3]), area(box[4]), limit{Real(threshold)}, zero(0);
  // A product that falls short of this needs no division: it is below the threshold by more than rounding.
  const V nearly{Real(threshold * (1 - 1e-6))};
  auto column = [](const void* values, int64_t i) {
    return load(static_cast<const Real*>(values) + i, V::kLanes);
  };
  for (int64_t i = begin; i < end; i += V::kLanes) {
    // The caller pads the columns with boxes that overlap nothing.
    const V w = math::smaller(x2, column(kept.x2, i)) - math::larger(x1, column(kept.x1, i));
    const V h = math::smaller(y2, column(kept.y2, i)) - math::larger(y1, column(kept.y1, i));
    const V intersection = math::larger(w, zero) * math::larger(h, zero);
    const V union_area = area + column(kept.area, i) - intersection;
    if (!any(intersection > nearly * union_area)) continue;
    if (any((intersection / union_area > limit) & (intersection > zero))) return true;
  }
  return false;
}

}  // namespace fcos_fast::FCOS_SIMD_NAMESPACE
