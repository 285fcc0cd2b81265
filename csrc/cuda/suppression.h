// Of greedy suppression: a box against another, and, the step that cannot be spread, 64 boxes against each other.
#pragma once

#include "../math/nms.h"

namespace fcos_fast {

constexpr unsigned kWholeWarp = 0xffffffffu;

__device__ __forceinline__ bool overlaps(const float4& a, const float4& b, float threshold) {
  const float a_box[5] = {a.x, a.y, a.z, a.w, math::box_area(a.x, a.y, a.z, a.w)};
  const float b_box[5] = {b.x, b.y, b.z, b.w, math::box_area(b.x, b.y, b.z, b.w)};
  return math::overlaps(a_box, b_box, threshold);
}

// Of 64 candidates those that greedy suppression keeps, for each warp as a whole: lane i brings candidates i and i + 32,
// whether each is alive, and the bits of the earlier ones that suppress it. Starting from all that are alive, the first n
// are right after n steps, and all of them when nothing changes: a few steps, the length of the longest chain.
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
