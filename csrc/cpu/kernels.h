// The inner loops that exist once per instruction set, and the choice among them at run time.
#pragma once

#include <cstdint>

#include "../dtype.h"
#include "../math/box_loss.h"
#include "../math/focal_loss.h"
#include "../math/group_norm_relu.h"

namespace fcos_fast {

// Elements of a focal loss that lie one after the other. Null pointers are what the caller does not have or
// want.
struct FocalSpan {
  const void* x;
  int64_t n;
  const void* targets;    // dense targets, one per element
  const int32_t* labels;  // or class labels, one per element, compared with `label`; neither: all background
  int32_t label;
  const void* upstream;  // gradient of the loss, one per element; without it `scale` is that of all
  double scale;
  void* loss;
  void* grad;
  bool with_sum;
};

// Returns the sum of the span's losses if `with_sum`, else 0.
using FocalKernel = double (*)(const FocalSpan&, const FocalParameters&);

// n pairs of boxes, four numbers each. Losses and what flows into them are float32 (float64 for float64 boxes).
struct BoxLossSpan {
  const void* pred;
  const void* target;
  int64_t n;
  const void* upstream;  // one per pair, or null for `scale`
  double scale;
  void* loss;  // one per pair
  void* grad;  // four per pair
};

using BoxLossKernel = double (*)(const BoxLossSpan&, const BoxLossParameters&);

// n locations, four distances each. Without upstream: out[n] centerness; with it: out[n, 4] the gradient.
using CenternessKernel = void (*)(const void* ltrb, const void* upstream, void* out, int64_t n);

// Kept boxes of non-maximum suppression; unused places hold a box that overlaps nothing. Real: float, or double for
// float64 boxes.
template <class Real>
struct BoxTile {
  static constexpr int64_t kBoxes = 16;  // a multiple of any instruction set's lanes
  alignas(64) Real x1[kBoxes], y1[kBoxes], x2[kBoxes], y2[kBoxes], area[kBoxes];
};

// Has a box (x1, y1, x2, y2, area) an IoU above the threshold with any of the tiles' boxes [begin, end)? It may look
// at some before `begin` again.
using OverlapsAny = bool (*)(const void* tiles, int64_t begin, int64_t end, const void* box,
                             double threshold);

// Positions of the logits that are not below `lowest`, in rising order, and their number; `found` has room for n + 1.
using FindLogits = int64_t (*)(const void* logits, int64_t n, double lowest, int32_t* found);

// n numbers in rows of `columns`, the last row perhaps not whole. Parameters are float32 (float64 for float64),
// one per column; null pointers are what a pass does not need.
struct GroupNormSpan {
  const void* x;
  const void* grad;
  void* out;
  int64_t n, columns;
  void* scratch;  // three numbers per column
  const void* mean;
  const void* scale;
  const void* shift;
  const void* offset;  // these two: see GroupGradient
  const void* slope;
};

struct GroupNormKernels {
  // Of every `width` neighbouring columns; a row that is not whole needs width = columns.
  void (*moments)(const GroupNormSpan&, int64_t width, math::Moments*);
  void (*apply)(const GroupNormSpan&);
  // Adds g and g * (x - mean) of every `width` neighbouring columns; g is the gradient behind the ReLU.
  void (*grad_sums)(const GroupNormSpan&, int64_t width, double* sums, double* centered_sums);
  void (*grad_apply)(const GroupNormSpan&);
};

// Anchors as columns, and the box around all of them.
struct AnchorBlock {
  static constexpr int kSize = 128;
  float x1[kSize], y1[kSize], x2[kSize], y2[kSize], area[kSize];
  float bounds[4];
};

struct MatchKernels {
  // Offers a box (x1, y1, x2, y2, area) to anchors that have the IoUs `best`; returns its greatest IoU.
  float (*match_box)(const AnchorBlock&, const float* box, int32_t row, float* best, int32_t* matched);
  // Marks the anchors that have this IoU, above 0, with the box.
  void (*mark_equal)(const AnchorBlock&, const float* box, float iou, uint8_t* marks);
};

struct Kernels {
  FocalKernel focal;
  BoxLossKernel box_loss;
  CenternessKernel centerness;
  OverlapsAny overlaps_any;
  FindLogits find_logits;
  GroupNormKernels group_norm_relu;
  MatchKernels match_anchors;  // float32, whatever the type
};

// Those of one instruction set.
struct KernelSet {
  const char* name;
  Kernels float32, bfloat16, float16, float64;
};

// The widest instruction set that this machine runs, or the one that FCOS_FAST_SIMD=baseline|avx2|avx512 asks
// for.
const KernelSet& kernel_set();

// Kernels for elements of a type.
const Kernels& kernels(Dtype dtype);

}  // namespace fcos_fast
