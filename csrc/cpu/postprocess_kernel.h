// The inner loop of post-processing: finds the few logits above the bound.
#pragma once

#include "vec.h"

namespace fcos_fast::FCOS_SIMD_NAMESPACE {

// See FindLogits in kernels.h.
template <class T>
int64_t find_logits(const void* logits, int64_t n, double lowest, int32_t* found) {
  using V = vec_t<T>;
  using Real = typename V::Real;
  constexpr int kUnroll = 4;
  const T* x = static_cast<const T*>(logits);
  const Real bound = Real(lowest);
  int64_t count = 0, i = 0;
  auto scan = [&](int64_t end) {
    for (; i < end; ++i) {
      found[count] = int32_t(i);
      count += Real(x[i]) >= bound;
    }
  };
  while (i + kUnroll * V::kLanes <= n) {
    typename V::Mask masks[kUnroll];
    for (int k = 0; k < kUnroll; ++k) masks[k] = load(x + i + k * V::kLanes, V::kLanes) >= V(bound);
    if (!any((masks[0] | masks[1]) | (masks[2] | masks[3]))) {
      i += kUnroll * V::kLanes;
      continue;
    }
    for (int k = 0; k < kUnroll; ++k) {
      if (any(masks[k])) {
        scan(i + V::kLanes);
      } else {
        i += V::kLanes;
      }
    }
  }
  scan(n);
  return count;
}

}  // namespace fcos_fast::FCOS_SIMD_NAMESPACE
