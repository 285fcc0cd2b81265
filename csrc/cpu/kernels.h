// The inner loops, compiled once per instruction set, and their selection at run time.
#pragma once

#include <cstdint>

#include "../dtype.h"
#include "../math/box_loss.h"
#include "../math/focal_loss.h"
#include "../math/group_norm_relu.h"
#include "../math/winograd.h"

namespace fcos_fast {

// Contiguous elements of a focal loss. Unused inputs and outputs are null.
struct FocalSpan {
  const void* x;
  int64_t n;
  const void* targets;    // dense targets, one per element
  const int32_t* labels;  // or class labels, compared with `label`; if both are null, all are background
  int32_t label;
  double weight = 1;     // of the losses
  const void* upstream;  // incoming gradient, one per element; if null, `scale` for all
  double scale;
  void* loss;
  void* grad;
  bool with_sum;
};

// Returns the sum of the span's losses if `with_sum`, else 0.
using FocalKernel = double (*)(const FocalSpan&, const FocalParameters&);

// n pairs of boxes, four numbers each. Losses and incoming gradients are float32 (float64 for float64 boxes).
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

// n locations, four distances each. out is the centerness (n), or the gradient (n, 4) if `upstream` is not null.
using CenternessKernel = void (*)(const void* ltrb, const void* upstream, void* out, int64_t n);

// Kept boxes of non-maximum suppression. Unused entries overlap nothing. Real: float (double for float64 boxes).
template <class Real>
struct BoxTile {
  static constexpr int64_t kBoxes = 16;  // a multiple of the lanes of every instruction set
  alignas(64) Real x1[kBoxes], y1[kBoxes], x2[kBoxes], y2[kBoxes], area[kBoxes];
};

// Does a box (x1, y1, x2, y2, area) have an IoU above the threshold with any of the boxes [begin, end) of the tiles?
// May also compare boxes before `begin`, and unused entries of the last tile.
using OverlapsAny = bool (*)(const void* tiles, int64_t begin, int64_t end, const void* box,
                             double threshold);

// Writes the ascending indices of all logits >= `lowest` to `found` (of size n + 1) and returns their number.
using FindLogits = int64_t (*)(const void* logits, int64_t n, double lowest, int32_t* found);

// n numbers in rows of `columns`; the last row may be incomplete. Parameters are float32 (float64 for float64), one per
// column, and null if a pass does not need them.
struct GroupNormSpan {
  const void* x;
  const void* grad;
  void* out;
  int64_t n, columns;
  void* scratch;  // three numbers per column
  const void* mean;
  const void* scale;
  const void* shift;
  const void* offset;  // offset and slope: see GroupGradient
  const void* slope;
};

struct GroupNormKernels {
  // Moments of every `width` adjacent columns. An incomplete row requires width = columns.
  void (*moments)(const GroupNormSpan&, int64_t width, math::Moments*);
  void (*apply)(const GroupNormSpan&);
  // Adds up g and g * (x - mean) over every `width` adjacent columns; g is the gradient that passed the ReLU.
  void (*grad_sums)(const GroupNormSpan&, int64_t width, double* sums, double* centered_sums);
  void (*grad_apply)(const GroupNormSpan&);
};

// Anchors as a structure of arrays, with their common bounding box.
struct AnchorBlock {
  static constexpr int kSize = 128;
  float x1[kSize], y1[kSize], x2[kSize], y2[kSize], area[kSize];
  float bounds[4];
};

struct MatchKernels {
  // Updates `best` and `matched` of all anchors that have a greater IoU with this box (x1, y1, x2, y2, area). Returns
  // its greatest IoU.
  float (*match_box)(const AnchorBlock&, const float* box, int32_t row, float* best, int32_t* matched);
  // Writes `row` to the claims of the anchors whose IoU with the box equals `iou` (> 0).
  void (*claim_equal)(const AnchorBlock&, const float* box, int32_t row, float iou, int32_t* claims);
};

// The tiles [begin, end), which are in the range of the work.
struct WinogradKernels {
  void (*input)(const WinogradRead&, int64_t begin, int64_t end);
  void (*gradient)(const WinogradRead&, int64_t begin, int64_t end);
  void (*output)(const WinogradWrite&, int64_t begin, int64_t end);
};

struct Kernels {
  FocalKernel focal;
  BoxLossKernel box_loss;
  CenternessKernel centerness;
  OverlapsAny overlaps_any;
  FindLogits find_logits;
  GroupNormKernels group_norm_relu;
  MatchKernels match_anchors;  // always float32
  WinogradKernels winograd;    // always float32
};

// The kernels of one instruction set.
struct KernelSet {
  const char* name;
  Kernels float32, bfloat16, float16, float64;
};

// The widest instruction set that this CPU supports, or the one requested by FCOS_FAST_SIMD=baseline|avx2|avx512.
const KernelSet& kernel_set();

// The kernels for elements of this dtype.
const Kernels& kernels(Dtype dtype);

}  // namespace fcos_fast
