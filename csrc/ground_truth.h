// Checks of a packed batch of boxes.
#pragma once

#include <limits>

#include "checks.h"

namespace fcos_fast {

inline void check_ground_truth(const char* op, const Tensor& boxes, const Tensor& labels,
                               const Tensor& starts) {
  check_same_device(op, boxes, labels, starts);
  STD_TORCH_CHECK(boxes.scalar_type() == ScalarType::Float && boxes.dim() == 2 && boxes.size(1) == 4,
                  "fcos_fast::", op, ": expected float32 boxes (M, 4)");
  STD_TORCH_CHECK(
      labels.scalar_type() == ScalarType::Long && labels.dim() == 1 && labels.size(0) == boxes.size(0),
      "fcos_fast::", op, ": expected int64 labels (M,)");
  STD_TORCH_CHECK(starts.scalar_type() == ScalarType::Long && starts.dim() == 1 && starts.size(0) >= 2,
                  "fcos_fast::", op, ": expected int64 starts (B + 1,) of at least one image");
  STD_TORCH_CHECK(boxes.size(0) <= std::numeric_limits<int32_t>::max(), "fcos_fast::", op,
                  ": more than 2^31 - 1 boxes");
}

// On the host.
inline void check_starts(const char* op, const int64_t* starts, int64_t batch, int64_t boxes) {
  for (int64_t b = 0; b < batch; ++b) {
    STD_TORCH_CHECK(0 <= starts[b] && starts[b] <= starts[b + 1] && starts[b + 1] <= boxes, "fcos_fast::", op,
                    ": starts must rise from 0 to the number of boxes");
  }
}

inline void check_anchors(const Tensor& anchors, const Tensor& boxes, double high_threshold,
                          double low_threshold) {
  check_same_device("match_anchors", anchors, boxes);
  STD_TORCH_CHECK(low_threshold <= high_threshold,
                  "fcos_fast::match_anchors: expected low_threshold <= high_threshold, got ", low_threshold,
                  " and ", high_threshold);
  STD_TORCH_CHECK(anchors.scalar_type() == ScalarType::Float && anchors.dim() == 2 && anchors.size(1) == 4,
                  "fcos_fast::match_anchors: expected float32 anchors (A, 4)");
}

}  // namespace fcos_fast
