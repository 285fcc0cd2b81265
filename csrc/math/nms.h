// Greedy non-maximum suppression.
//
// nms(boxes, scores, iou_threshold), batched_nms(boxes, scores, idxs, iou_threshold)
//   boxes    (N, 4) xyxy; scores (N,); idxs (N,) any integers; boxes with different idxs never suppress each other
//   result   int64 indices of the kept boxes in descending score order; equal scores keep their input order; NaN
//            sorts as the greatest score, as in torch.sort
//   rule     a box is suppressed if its IoU with a kept box of a higher score is greater than iou_threshold
//   exact    areas and IoU are computed from the coordinates themselves (no per-class offset) in float32 (float64 for
//            float64 boxes), rounded after each operation like torchvision's; the threshold is float64
//   special  a box that contains a NaN is neither suppressed nor suppresses others; disjoint boxes have IoU 0, even if
//            both areas are 0 and the quotient would be 0/0
//
// nms_padded(boxes, scores, labels, iou_threshold, max_detections)
//   boxes    (B, N, 4) xyxy; scores (B, N), -inf marks padding; labels (B, N) any integers, optional: NMS runs within
//            each image, and within each class if there are labels
//   result   indices (B, D) int64 of the first D kept boxes of each image, padded with -1; counts (B,) int64. The
//            output shapes do not depend on the data, so CUDA never synchronizes
#pragma once

#include <type_traits>
#include <vector>

#include "../device.h"
#include "../dtype.h"
#include "elementary.h"

namespace fcos_fast {

struct NmsWork {
  Dtype boxes_dtype, scores_dtype;  // float32 or float64
  const void* boxes;                // (N, 4)
  const void* scores;               // (N)
  const int64_t* idxs;              // (N), or null
  int64_t n;
  double iou_threshold;
};
// Indices of the kept boxes in descending score order.
std::vector<int64_t> run_nms(Cpu, const NmsWork&);

// On a GPU, torch sorts first.
struct SortedNmsWork {
  const float* boxes;      // (N, 4), grouped by class, each class in descending score order
  const int64_t* classes;  // (N) of these boxes; null: a single class
  const int64_t* ranks;  // (N) position of each box in the descending order of all scores; null: 0, 1, 2, ...
  int64_t n;             // at least 1
  double iou_threshold;
  bool* kept;  // (N) by rank
};
void run_nms(Cuda, const SortedNmsWork&);

struct NmsPaddedWork {
  Dtype boxes_dtype, scores_dtype;  // float32, on the CPU also float64
  const void* boxes;                // (B, N, 4)
  const void* scores;               // (B, N)
  const int64_t* labels;            // (B, N), or null
  int64_t batch, n, max_detections;
  double iou_threshold;
  int64_t* indices;  // (B, max_detections)
  int64_t* counts;   // (B)
};
void run_nms_padded(Cpu, const NmsPaddedWork&);
void run_nms_padded(Cuda, const NmsPaddedWork&);

}  // namespace fcos_fast

namespace fcos_fast::math {

// Score (upper bits) and index (lower 32 bits) packed into one integer: a greater key has a greater score, or the same
// score and a lower index. Keys are unique. 0 is never a key, since indices stay below 2^32 - 1.
template <class Real>
using key_t = std::conditional_t<std::is_same_v<Real, double>, unsigned __int128, uint64_t>;

template <class To, class From>
FCOS_HOST_DEVICE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

// Maps a score to an integer with the same order as in torch.sort: NaN is greatest, -0 equals 0.
FCOS_HOST_DEVICE uint32_t ascending(float score) {
  if (score != score) return 0xffffffffu;
  const uint32_t bits = bits_as<uint32_t>(score + 0.0f);  // -0 becomes 0
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
FCOS_HOST_DEVICE uint64_t ascending(double score) {
  if (score != score) return ~uint64_t(0);
  const uint64_t bits = bits_as<uint64_t>(score + 0.0);
  return bits >> 63 ? ~bits : bits | uint64_t(1) << 63;
}

// The inverse of make_key(); the payload of a NaN is lost.
FCOS_HOST_DEVICE float score_of(uint64_t key) {
  const uint32_t bits = uint32_t(key >> 32);
  return bits_as<float>(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
}
FCOS_HOST_DEVICE double score_of(unsigned __int128 key) {
  const uint64_t bits = uint64_t(key >> 32);
  return bits_as<double>(bits >> 63 ? bits & ~(uint64_t(1) << 63) : ~bits);
}

template <class Real>
FCOS_HOST_DEVICE key_t<Real> make_key(Real score, uint32_t index) {
  return key_t<Real>(ascending(score)) << 32 | uint32_t(~index);
}
template <class Key>
FCOS_HOST_DEVICE uint32_t index_of(Key key) {
  return ~uint32_t(key);
}

// For float32 x, x > threshold (float64) if and only if x > round_down(threshold).
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
  const T w = min(a[2], b[2]) - max(a[0], b[0]);
  const T h = min(a[3], b[3]) - max(a[1], b[1]);
  if (!(w > T(0)) || !(h > T(0))) return false;
  const T intersection = w * h;
  return intersection / (a[4] + b[4] - intersection) > threshold;
}

}  // namespace fcos_fast::math
