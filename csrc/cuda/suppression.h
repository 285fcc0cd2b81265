// Building blocks of greedy suppression: comparing two boxes, and resolving 64 boxes among themselves, which is
// sequential.
#pragma once

#include "../math/nms.h"

namespace fcos_fast {

constexpr unsigned kWholeWarp = 0xffffffffu;

__device__ __forceinline__ bool overlaps(const float4& a, const float4& b, float threshold) {
  const float a_box[5] = {a.x, a.y, a.z, a.w, math::box_area(a.x, a.y, a.z, a.w)};
  const float b_box[5] = {b.x, b.y, b.z, b.w, math::box_area(b.x, b.y, b.z, b.w)};
  return math::overlaps(a_box, b_box, threshold);
}

// Returns the mask of those of 64 candidates that greedy suppression keeps. A whole warp calls it: lane i passes, for
// candidates i and i + 32, whether they are alive, and the mask of the earlier ones that suppress them. Fixed-point
// iteration, starting with all alive candidates: after n steps the first n are right, and it has converged when nothing
// changes, after as many steps as the longest chain (a few).
__device__ __forceinline__ unsigned long long resolve(bool low_alive, unsigned long long low, bool high_alive,
                                                      unsigned long long high) {
  unsigned long long kept = ~0ull, before;
  do {
    before = kept;
    const unsigned low_kept = __ballot_sync(kWholeWarp, low_alive && (low & before) == 0);
    const unsigned high_kept = __ballot_sync(kWholeWarp, high_alive && (high & before) == 0);
    kept = (unsigned long long)high_kept << 32 | low_kept;
  } while (kept != before);
  return kept;
}

}  // namespace fcos_fast
