// Losses on pairs of boxes.
//
// box_loss(pred, target, kind, ltrb, smooth, eps)
//   pred, target  (..., 4); float32, float64, bfloat16, float16; xyxy in any unit, or ltrb distances from one location
//   kind          iou -log(IoU), linear_iou 1 - IoU, giou (Rezatofighi 2019), diou and ciou (Zheng 2020);
//                 IoU = (I + smooth) / (U + smooth + eps)
//   result        (...) one loss per pair, float32 (float64 for float64 boxes), like the incoming gradient in backward;
//                 *_sum: their sum, added in a fixed order
//   gradient      for both (every kind is symmetric in its two boxes); equal coordinates share it equally, as in
//                 torch.minimum and torch.maximum
//   computation   float32 (float64 for float64)
//   degenerate    boxes with zero area have IoU smooth / (U + smooth + eps); -log is clamped at eps, where its gradient
//                 is 0; NaN propagates
#pragma once

#include "../device.h"
#include "../dtype.h"
#include "elementary.h"

namespace fcos_fast::math {

enum class BoxLossKind { kIou, kLinearIou, kGiou, kDiou, kCiou };
constexpr const char* kBoxLossKinds[] = {"iou", "linear_iou", "giou", "diou", "ciou"};

}  // namespace fcos_fast::math

namespace fcos_fast {

struct BoxLossParameters {
  math::BoxLossKind kind;
  bool ltrb;  // boxes are distances from a location, not xyxy
  double smooth, eps;
};

struct BoxLossWork {
  Dtype dtype;
  const void* pred;    // (n, 4)
  const void* target;  // (n, 4)
  int64_t n;
  // Incoming gradient: one number, or (n). float32 (float64 for float64 boxes), like `loss`.
  const void* scale;
  const void* upstream;
  // Exactly one of the three outputs is not null.
  void* loss;  // (n)
  void* sum;
  void* grad;  // (n, 4)
};
void run_box_loss(Cpu, const BoxLossParameters&, const BoxLossWork&);
void run_box_loss(Cuda, const BoxLossParameters&, const BoxLossWork&);

}  // namespace fcos_fast

namespace fcos_fast::math {

// d min(a, b) / d a, and d max(a, b) / d a.
template <class T>
FCOS_HOST_DEVICE T slope_of_min(T a, T b) {
  return select(a < b, T(1), select(a > b, T(0), T(0.5f)));
}
template <class T>
FCOS_HOST_DEVICE T slope_of_max(T a, T b) {
  return select(a > b, T(1), select(a < b, T(0), T(0.5f)));
}

// Intermediate values shared by the loss and its gradient. p is the predicted box, t the target, both xyxy.
template <class T, BoxLossKind Kind>
struct BoxPair {
  static constexpr bool kDistance = Kind == BoxLossKind::kDiou || Kind == BoxLossKind::kCiou;

  const T* p;
  const T* t;
  T eps;
  T pw, ph, tw, th;
  T angle_difference;      // of the diagonals, for kCiou
  T overlap_w, overlap_h;  // not clamped
  T enclosing_w, enclosing_h;
  T union_area, iou_over, iou_under, iou;

  FCOS_HOST_DEVICE BoxPair(const T* pred, const T* target, T smooth, T epsilon)
      : p(pred), t(target), eps(epsilon) {
    pw = p[2] - p[0], ph = p[3] - p[1], tw = t[2] - t[0], th = t[3] - t[1];
    // First, while register pressure is low.
    if constexpr (Kind == BoxLossKind::kCiou) angle_difference = atan2(tw, th) - atan2(pw, ph);
    overlap_w = min(p[2], t[2]) - max(p[0], t[0]);
    overlap_h = min(p[3], t[3]) - max(p[1], t[1]);
    enclosing_w = max(p[2], t[2]) - min(p[0], t[0]);
    enclosing_h = max(p[3], t[3]) - min(p[1], t[1]);
    const T intersection = max(overlap_w, T(0)) * max(overlap_h, T(0));
    union_area = pw * ph + tw * th - intersection;
    iou_over = intersection + smooth;
    iou_under = union_area + smooth + eps;
    iou = iou_over / iou_under;
  }

  FCOS_HOST_DEVICE T diagonal() const { return enclosing_w * enclosing_w + enclosing_h * enclosing_h + eps; }
  FCOS_HOST_DEVICE T center_dx() const { return (p[0] + p[2] - t[0] - t[2]) * T(0.5f); }
  FCOS_HOST_DEVICE T center_dy() const { return (p[1] + p[3] - t[1] - t[3]) * T(0.5f); }
  FCOS_HOST_DEVICE T aspect(T difference) const { return T(4 / (M_PI * M_PI)) * difference * difference; }
  FCOS_HOST_DEVICE T aspect_weight(T v) const {
    return v / (T(1) - iou + v + eps);
  }  // treated as a constant in the gradient

  FCOS_HOST_DEVICE T loss() const {
    if constexpr (Kind == BoxLossKind::kIou) return -log_positive(select(iou < eps, eps, iou));
    T loss = T(1) - iou;
    if constexpr (Kind == BoxLossKind::kGiou) {
      const T enclosing = enclosing_w * enclosing_h;
      loss = loss + (enclosing - union_area) / (enclosing + eps);
    }
    if constexpr (kDistance) {
      const T dx = center_dx(), dy = center_dy();
      loss = loss + (dx * dx + dy * dy) / diagonal();
    }
    if constexpr (Kind == BoxLossKind::kCiou) {
      const T v = aspect(angle_difference);
      loss = loss + aspect_weight(v) * v;
    }
    return loss;
  }

  // d loss / d p times `upstream`.
  FCOS_HOST_DEVICE void grad(T upstream, T out[4]) const {
    T to_iou = T(-1);
    if constexpr (Kind == BoxLossKind::kIou) to_iou = select(iou < eps, T(0), T(-1) / iou);
    T to_area = -to_iou * iou / iou_under;  // of the predicted box, through the union
    T to_intersection = to_iou / iou_under - to_area;
    T to_enclosing_w = T(0), to_enclosing_h = T(0);
    T to_center_x = T(0), to_center_y = T(0);  // for each of the two coordinates
    T to_w = T(0), to_h = T(0);

    if constexpr (Kind == BoxLossKind::kGiou) {
      const T under = T(1) / (enclosing_w * enclosing_h + eps);
      const T to_enclosing = (union_area + eps) * under * under;
      to_enclosing_w = to_enclosing * enclosing_h;
      to_enclosing_h = to_enclosing * enclosing_w;
      to_area = to_area - under;
      to_intersection = to_intersection + under;
    }
    if constexpr (kDistance) {
      const T dx = center_dx(), dy = center_dy(), under = T(1) / diagonal();
      const T to_diagonal = -(dx * dx + dy * dy) * under * under;
      to_enclosing_w = T(2) * to_diagonal * enclosing_w;
      to_enclosing_h = T(2) * to_diagonal * enclosing_h;
      to_center_x = dx * under;
      to_center_y = dy * under;
    }
    if constexpr (Kind == BoxLossKind::kCiou) {
      const T v = aspect(angle_difference);
      const T square = pw * pw + ph * ph;
      const T to_angle = select(
          square > T(0), T(-2) * T(4 / (M_PI * M_PI)) * aspect_weight(v) * angle_difference / square, T(0));
      to_w = to_angle * ph;
      to_h = -to_angle * pw;
    }
    // Boxes that merely touch have no gradient through the intersection.
    const T to_overlap_w = select(overlap_w > T(0), to_intersection * max(overlap_h, T(0)), T(0));
    const T to_overlap_h = select(overlap_h > T(0), to_intersection * max(overlap_w, T(0)), T(0));
    const T whole_w = to_area * ph + to_w;
    const T whole_h = to_area * pw + to_h;

    out[0] = upstream * (to_center_x - whole_w - to_overlap_w * slope_of_max(p[0], t[0]) -
                         to_enclosing_w * slope_of_min(p[0], t[0]));
    out[1] = upstream * (to_center_y - whole_h - to_overlap_h * slope_of_max(p[1], t[1]) -
                         to_enclosing_h * slope_of_min(p[1], t[1]));
    out[2] = upstream * (to_center_x + whole_w + to_overlap_w * slope_of_min(p[2], t[2]) +
                         to_enclosing_w * slope_of_max(p[2], t[2]));
    out[3] = upstream * (to_center_y + whole_h + to_overlap_h * slope_of_min(p[3], t[3]) +
                         to_enclosing_h * slope_of_max(p[3], t[3]));
  }
};

}  // namespace fcos_fast::math
