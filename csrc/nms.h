// The front of nms and nms_padded: see math/nms.h.
#pragma once

#include <limits>

#include "checks.h"

namespace fcos_fast {

inline void check_candidates(const char* op, const Tensor& boxes, const Tensor& scores,
                             const std::optional<Tensor>& labels, double iou_threshold) {
  check_same_device(op, boxes, scores, labels);
  check_floating(op, "boxes", boxes);
  check_floating(op, "scores", scores);
  if (labels.has_value()) check_integer(op, "labels", *labels);
  STD_TORCH_CHECK(!labels.has_value() || sizes_of(*labels) == sizes_of(scores), "fcos_fast::", op,
                  ": expected one label per score");
  check_number(op, "iou_threshold", iou_threshold, 0, 1);
}

inline void check_nms(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,
                      double iou_threshold) {
  STD_TORCH_CHECK(
      boxes.dim() == 2 && boxes.size(1) == 4 && scores.dim() == 1 && scores.size(0) == boxes.size(0),
      "fcos_fast::nms: expected boxes (N, 4) and scores (N,)");
  STD_TORCH_CHECK(boxes.size(0) < std::numeric_limits<int32_t>::max(),
                  "fcos_fast::nms: 2^31 - 1 boxes or more");
  check_candidates("nms", boxes, scores, idxs, iou_threshold);
}

inline void check_nms_padded(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& labels,
                             double iou_threshold, int64_t max_detections) {
  STD_TORCH_CHECK(boxes.dim() == 3 && boxes.size(2) == 4 && scores.dim() == 2 &&
                      scores.size(0) == boxes.size(0) && scores.size(1) == boxes.size(1),
                  "fcos_fast::nms_padded: expected boxes (B, N, 4) and scores (B, N)");
  STD_TORCH_CHECK(boxes.size(1) < std::numeric_limits<uint32_t>::max(),
                  "fcos_fast::nms_padded: 2^32 - 1 boxes of an image or more");
  check_candidates("nms_padded", boxes, scores, labels, iou_threshold);
  check_range("nms_padded", "max_detections", max_detections, 1, std::numeric_limits<int32_t>::max());
}

}  // namespace fcos_fast
