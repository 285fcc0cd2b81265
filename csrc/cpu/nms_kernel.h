// The inner loop of non-maximum suppression: one box against the boxes kept so far.
#pragma once

#include "../math/nms.h"
#include "vec.h"

namespace fcos_fast::FCOS_SIMD_NAMESPACE {

template <class V>
bool overlaps_any(const void* tiles, int64_t begin, int64_t end, const void* box_pointer, double threshold) {
  using Real = typename V::Real;
  using Tile = BoxTile<Real>;
  static_assert(Tile::kBoxes % V::kLanes == 0, "a register holds boxes of one tile");
  const Real* box = static_cast<const Real*>(box_pointer);
  const V x1(box[0]), y1(box[1]), x2(box[2]), y2(box[3]), area(box[4]), limit{Real(threshold)}, zero(0);
  // A product that falls short of this needs no division: it is below the threshold by more than rounding.
  const V nearly = limit * V(Real(1 - 1e-6));
  const auto* tile = static_cast<const Tile*>(tiles) + begin / Tile::kBoxes;
  const auto* last = static_cast<const Tile*>(tiles) + (end + Tile::kBoxes - 1) / Tile::kBoxes;
  for (; tile < last; ++tile) {
    for (int64_t lane = 0; lane < Tile::kBoxes; lane += V::kLanes) {
      auto kept = [lane](const Real* column) { return load(column + lane, V::kLanes); };
      const V w = smaller(x2, kept(tile->x2)) - larger(x1, kept(tile->x1));
      const V h = smaller(y2, kept(tile->y2)) - larger(y1, kept(tile->y1));
      const V intersection = larger(w, zero) * larger(h, zero);
      const V union_area = area + kept(tile->area) - intersection;
      if (!any(intersection >= nearly * union_area)) continue;
      if (any((intersection / union_area > limit) & (intersection > zero))) return true;
    }
  }
  return false;
}

}  // namespace fcos_fast::FCOS_SIMD_NAMESPACE
