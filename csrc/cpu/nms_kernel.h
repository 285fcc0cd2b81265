// The inner loop of non-maximum suppression: compares one box with the boxes kept so far.
#pragma once

#include "../math/nms.h"
#include "vec.h"

namespace fcos_fast::FCOS_SIMD_NAMESPACE {

template <class V>
bool overlaps_any(const void* tiles, int64_t begin, int64_t end, const void* box_pointer, double threshold) {
  using Real = typename V::Real;
  using Tile = BoxTile<Real>;
  static_assert(Tile::kBoxes % V::kLanes == 0, "a register must not span two tiles");
  const Real* box = static_cast<const Real*>(box_pointer);
  const V x1(box[0]), y1(box[1]), x2(box[2]), y2(box[3]), area(box[4]), limit{Real(threshold)}, zero(0);
  // Below this bound the IoU is certainly below the threshold, and the division is skipped.
  const V nearly = limit * V(Real(1 - 1e-6));
  const auto* tile = static_cast<const Tile*>(tiles) + begin / Tile::kBoxes;
  const auto* last = static_cast<const Tile*>(tiles) + (end + Tile::kBoxes - 1) / Tile::kBoxes;
  for (; tile < last; ++tile) {
    for (int64_t lane = 0; lane < Tile::kBoxes; lane += V::kLanes) {
      auto kept = [lane](const Real* column) { return load(column + lane, V::kLanes); };
      const V w = min(x2, kept(tile->x2)) - max(x1, kept(tile->x1));
      const V h = min(y2, kept(tile->y2)) - max(y1, kept(tile->y1));
      const V intersection = max(w, zero) * max(h, zero);
      const V union_area = area + kept(tile->area) - intersection;
      if (!any(intersection >= nearly * union_area)) continue;
      if (any((intersection / union_area > limit) & (intersection > zero))) return true;
    }
  }
  return false;
}

}  // namespace fcos_fast::FCOS_SIMD_NAMESPACE
