// Centerness (Tian et al. 2019, equation 3).
//
// centerness(ltrb)
//   ltrb     (..., 4) distances to the left, top, right and bottom sides; float32, float64, bfloat16, float16
//   result   (...) sqrt(min(l,r)/max(l,r) * min(t,b)/max(t,b)); 0 if a distance is 0, negative
//            or NaN
//   gradient for ltrb; equal distances share it equally, as in torch.minimum and torch.maximum; 0 outside
//            the box
#pragma once

#include "../device.h"
#include "../dtype.h"
#include "elementary.h"

namespace fcos_fast {

struct CenternessWork {
  Dtype dtype;
  const void* ltrb;      // (n, 4)
  const void* upstream;  // (n), or null
  int64_t n;
  void* out;  // centerness (n); with upstream, the gradient (n, 4)
};
void run_centerness(Cpu, const CenternessWork&);
void run_centerness(Cuda, const CenternessWork&);

}  // namespace fcos_fast

namespace fcos_fast::math {

// False if any distance is NaN, which min() and max() might drop.
template <class T>
FCOS_HOST_DEVICE auto is_inside(const T d[4]) {
  return (d[0] > T(0)) & (d[1] > T(0)) & (d[2] > T(0)) & (d[3] > T(0));
}

template <class T>
FCOS_HOST_DEVICE T centerness(const T d[4]) {
  const T ratio = (min(d[0], d[2]) * min(d[1], d[3])) / (max(d[0], d[2]) * max(d[1], d[3]));
  return select(is_inside(d), sqrt(ratio), T(0));
}

// With c = sqrt(min/max * ...): d c / d min = c / (2 min), d c / d max = -c / (2 max).
template <class T>
FCOS_HOST_DEVICE void centerness_grad(const T d[4], T upstream, T grad[4]) {
  const T half = T(0.5f) * upstream * centerness(d);
  const auto inside = is_inside(d);
  for (int side = 0; side < 2; ++side) {
    const T a = d[side], b = d[side + 2];
    const T slope_a = select(a < b, half / a, select(a > b, -half / a, T(0)));
    const T slope_b = select(b < a, half / b, select(b > a, -half / b, T(0)));
    grad[side] = select(inside, slope_a, T(0));
    grad[side + 2] = select(inside, slope_b, T(0));
  }
}

}  // namespace fcos_fast::math
