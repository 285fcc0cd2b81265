// Greedy non-maximum suppression.
//
// nms(boxes, scores, iou_threshold), batched_nms(boxes, scores, idxs, iou_threshold)
//   boxes    (N, 4) xyxy; scores (N,); idxs (N,) any integers: boxes of different idxs never suppress each other
//   result   int64 indices of the kept boxes by falling score; of equal scores the lower index comes first; NaN
//            scores count as the greatest, as in torch.sort
//   rule     a box falls when its IoU with a kept box of a higher score is greater than iou_threshold
//   exact    areas and IoU are computed on the coordinates themselves (no offset per class) in float32, or float64
//            for float64 boxes, rounded after each operation as torchvision's are; the threshold is a float64 number
//   odd      a box with a NaN neither falls nor fells; boxes that do not overlap have IoU 0, also where both areas
//            are 0 and the quotient is 0/0
#pragma once

#include "elementary.h"

namespace fcos_fast::math {

// For float32 x: x > threshold (float64) exactly when x > round_down(threshold).
FCOS_HOST_DEVICE float round_down(double threshold) {
  const float nearest = float(threshold);
  return double(nearest) <= threshold ? nearest : nextafterf(nearest, -INFINITY);
}

template <class T>
FCOS_HOST_DEVICE T box_area(T x1, T y1, T x2, T y2) {
  return (x2 - x1) * (y2 - y1);
}

template <class T>
FCOS_HOST_DEVICE bool overlaps(const T a[5], const T b[5], T threshold) {  // x1, y1, x2, y2, area
  const T w = smaller(a[2], b[2]) - larger(a[0], b[0]);
  const T h = smaller(a[3], b[3]) - larger(a[1], b[1]);
  if (!(w > T(0)) || !(h > T(0))) return false;
  const T intersection = w * h;
  return intersection / (a[4] + b[4] - intersection) > threshold;
}

}  // namespace fcos_fast::math
