// Device-independent part of nms and nms_padded; see math/nms.h.
#pragma once

#include <limits>

#include "device_of.h"
#include "math/nms.h"
#include "torch_operators.h"

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

// Converted to the types that the kernels read: contiguous float32 (float64), or int64.
inline Tensor real_rows(const Tensor& t) {
  return torch::stable::contiguous(converted(t, sum_type(t.scalar_type())));
}
inline std::optional<Tensor> integer_rows(const std::optional<Tensor>& t) {
  if (!t.has_value()) return std::nullopt;
  return torch::stable::contiguous(converted(*t, ScalarType::Long));
}
inline const int64_t* data_or_null(const std::optional<Tensor>& t) {
  return t.has_value() ? const_data<int64_t>(*t) : nullptr;
}

// ---- nms ----

inline Tensor kept_indices(Cpu device, const Tensor& boxes, const Tensor& scores,
                           const std::optional<Tensor>& idxs, double iou_threshold) {
  const Tensor b = real_rows(boxes), s = real_rows(scores);
  const std::optional<Tensor> classes = integer_rows(idxs);
  const std::vector<int64_t> kept =
      run_nms(device, {dtype_of(b), dtype_of(s), b.const_data_ptr(), s.const_data_ptr(),
                       data_or_null(classes), b.size(0), iou_threshold});
  Tensor out = new_empty(boxes, {int64_t(kept.size())}, ScalarType::Long);
  std::copy(kept.begin(), kept.end(), mutable_data<int64_t>(out));
  return out;
}

inline Tensor kept_indices(Cuda device, const Tensor& boxes, const Tensor& scores,
                           const std::optional<Tensor>& idxs, double iou_threshold) {
  if (boxes.size(0) == 0) return new_empty(boxes, {0}, ScalarType::Long);
  const Tensor order = argsort_descending(scores);
  std::optional<Tensor> classes, ranks;
  if (idxs.has_value())
    std::tie(classes, ranks) = sort_ascending(index_select(converted(*idxs, ScalarType::Long), order));
  const Tensor sorted = index_select(converted(boxes, ScalarType::Float),
                                     ranks.has_value() ? index_select(order, *ranks) : order);
  Tensor kept = new_empty(boxes, {boxes.size(0)}, ScalarType::Bool);
  run_nms(device, {const_data<float>(sorted), data_or_null(classes), data_or_null(ranks), boxes.size(0),
                   iou_threshold, mutable_data<bool>(kept)});
  return index_select(order, nonzero(kept));  // synchronizes: the shape of the result depends on the data
}

template <class Device>
Tensor nms(const Tensor& boxes, const Tensor& scores, const std::optional<Tensor>& idxs,
           double iou_threshold) {
  STD_TORCH_CHECK(
      boxes.dim() == 2 && boxes.size(1) == 4 && scores.dim() == 1 && scores.size(0) == boxes.size(0),
      "fcos_fast::nms: expected boxes (N, 4) and scores (N,)");
  STD_TORCH_CHECK(boxes.size(0) < std::numeric_limits<int32_t>::max(), "fcos_fast::nms: got ", boxes.size(0),
                  " boxes; expected fewer than 2^31 - 1");
  check_candidates("nms", boxes, scores, idxs, iou_threshold);
  DeviceOf<Device> device(boxes);
  return kept_indices(*device, boxes, scores, idxs, iou_threshold);
}

// ---- nms_padded ----

template <class Device>
std::tuple<Tensor, Tensor> nms_padded(const Tensor& boxes, const Tensor& scores,
                                      const std::optional<Tensor>& labels, double iou_threshold,
                                      int64_t max_detections) {
  STD_TORCH_CHECK(boxes.dim() == 3 && boxes.size(2) == 4 && scores.dim() == 2 &&
                      scores.size(0) == boxes.size(0) && scores.size(1) == boxes.size(1),
                  "fcos_fast::nms_padded: expected boxes (B, N, 4) and scores (B, N)");
  STD_TORCH_CHECK(boxes.size(1) < std::numeric_limits<uint32_t>::max(), "fcos_fast::nms_padded: got ",
                  boxes.size(1), " boxes per image; expected fewer than 2^32 - 1");
  check_candidates("nms_padded", boxes, scores, labels, iou_threshold);
  check_range("nms_padded", "max_detections", max_detections, 1, std::numeric_limits<int32_t>::max());
  DeviceOf<Device> device(boxes);
  const DeviceOf<Device> of_scores(scores);  // rejects a dtype without kernels on this device
  Tensor indices = new_empty(boxes, {boxes.size(0), max_detections}, ScalarType::Long);
  Tensor counts = new_empty(boxes, {boxes.size(0)}, ScalarType::Long);
  if (boxes.size(0) == 0) return {indices, counts};
  const Tensor b = device.aligned(real_rows(boxes)), s = real_rows(scores);
  const std::optional<Tensor> classes = integer_rows(labels);
  run_nms_padded(*device, {dtype_of(b), dtype_of(s), b.const_data_ptr(), s.const_data_ptr(),
                           data_or_null(classes), boxes.size(0), boxes.size(1), max_detections, iou_threshold,
                           mutable_data<int64_t>(indices), mutable_data<int64_t>(counts)});
  return {indices, counts};
}

}  // namespace fcos_fast
