// The three losses of FCOS (Tian et al. 2019) over all levels: focal loss, box loss and box quality loss.
//
// detection_loss(cls_logits, box_regression, centerness, labels, ltrb, quality, totals, normalizers, units, ...)
//   maps        per level (B, C, H, W), (B, 4, H, W), (B, 1, H, W); float32, float64, bfloat16, float16; the
//               three may have different dtypes. NCHW and channels-last maps are read, and their gradients written,
//               without a copy; other strides are copied first
//   labels      (B, P) int32, 0..C-1, -1 background, -2 ignored; P locations in level-major, row-major order
//   ltrb        (B, P, 4) float32 distances in pixels, quality (B, P) float32 target centerness; read only if label >=
//               0
//   units       pixels per unit of box_regression, per level
//   normalizers (3, B) float32: divisors of each image's losses. If absent they follow from totals (2,), the number n
//               of positives and the sum of their centerness: max(n, 1), max(sum, 1e-6) if weighted else max(n, 1),
//               max(n, 1)
//   weighted    each box loss is multiplied by its target centerness
//   iou_quality the target of `centerness` is the IoU of predicted and target box, without a gradient through it
//   result      losses (3,) float32 (float64 for float64 logits); the final gradients of their sum in the maps' dtypes,
//               0 at locations without a loss; *_backward: gradients of dot(upstream, losses)
//   computation float32 (float64 for float64 logits); sums in a fixed order: bitwise reproducible
#pragma once

#include "box_loss.h"
#include "focal_loss.h"

namespace fcos_fast::math {

// Binary cross-entropy of a logit with a soft target.
template <class T>
FCOS_HOST_DEVICE LossAndGrad<T> cross_entropy(T x, T y) {
  const auto s = sigmoid(x);
  return {max(x, T(0)) - x * y + s.log1p_exp, s.p - y};
}

}  // namespace fcos_fast::math

namespace fcos_fast {

enum DetectionLossPart : int { kClassification, kBoxes, kQuality, kLossParts };

constexpr int kMaxLevels = 8;
constexpr double kLeastPositives = 1, kLeastCenternessSum = 1e-6;

struct DetectionLossParameters {
  FocalParameters focal;
  BoxLossParameters box;
  bool weighted, iou_quality;
};

// A map (B, K, locations) without gaps, NCHW or channels-last.
struct LevelMap {
  const void* values;
  void* grad;  // or null
  Dtype dtype;
  int64_t image, channel, location;  // strides in elements
};

struct DetectionLevel {
  LevelMap maps[kLossParts];
  int64_t locations, first_location;
  double unit;
};

struct DetectionLossWork {
  DetectionLevel levels[kMaxLevels];
  int32_t level_count;
  int64_t batch, classes, locations;
  const int32_t* labels;     // (B, P)
  const float* ltrb;         // (B, P, 4)
  const float* quality;      // (B, P)
  const float* totals;       // (2)
  const float* normalizers;  // (3, B), or null
  const void* upstream;      // (3), or null for ones; float32 (float64 for float64 logits), as losses
  void* losses;              // (3), or null
};
void run_detection_loss(Cpu, const DetectionLossParameters&, const DetectionLossWork&);
void run_detection_loss(Cuda, const DetectionLossParameters&, const DetectionLossWork&);

// Multiplies the gradients of each part by its incoming gradient, in place; 0 makes any gradient 0, even NaN.
struct RescaleWork {
  struct Gradient {
    void* values;
    int64_t numel;
    Dtype dtype;
    int part;
  } gradients[kLossParts * kMaxLevels];
  int count;
  bool only_zero;        // change only the parts whose incoming gradient is 0
  const void* upstream;  // (3) float32 or float64
  Dtype upstream_dtype;
};
void run_rescale(Cpu, const RescaleWork&);
void run_rescale(Cuda, const RescaleWork&);

}  // namespace fcos_fast
