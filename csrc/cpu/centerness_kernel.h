// Centerness of contiguous locations.
#pragma once

#include "../math/centerness.h"
#include "vec.h"

namespace fcos_fast::FCOS_SIMD_NAMESPACE {

template <class T>
void centerness_span(const void* ltrb, const void* upstream, void* out, int64_t count) {
  using V = vec_t<T>;
  constexpr int kLanes = V::kLanes;
  const T* rows = static_cast<const T*>(ltrb);
  for (int64_t i = 0; i < count; i += kLanes) {
    const int n = int(std::min<int64_t>(kLanes, count - i));
    V d[4];
    load_rows(rows + 4 * i, n, d);
    if (upstream == nullptr) {
      store(static_cast<T*>(out) + i, math::centerness(d), n);
    } else {
      V grad[4];
      math::centerness_grad(d, load(static_cast<const T*>(upstream) + i, n), grad);
      store_rows(static_cast<T*>(out) + 4 * i, grad, n);
    }
  }
}

}  // namespace fcos_fast::FCOS_SIMD_NAMESPACE
