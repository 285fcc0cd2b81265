// Device-independent part of match_anchors; see math/match_anchors.h.
#pragma once

#include "device_of.h"
#include "math/match_anchors.h"

namespace fcos_fast {

inline math::MatchRule match_rule(double high_threshold, double low_threshold, const std::string& low_quality,
                                  double min_pos_iou) {
  const char* op = "match_anchors";
  check_number(op, "min_pos_iou", min_pos_iou, 0, 1);
  return {float(high_threshold), float(low_threshold),
          read_choice<math::LowQuality>(op, "low_quality", low_quality, math::kLowQualities),
          float(min_pos_iou)};
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

template <class Device>
std::tuple<Tensor, Tensor, Tensor> match_anchors(const Tensor& anchors, const Tensor& boxes,
                                                 const Tensor& labels, const Tensor& starts,
                                                 double high_threshold, double low_threshold,
                                                 std::string low_quality, double min_pos_iou) {
  check_anchors(anchors, boxes, high_threshold, low_threshold);
  check_ground_truth("match_anchors", boxes, labels, starts);
  DeviceOf<Device> device(anchors);
  const int64_t batch = starts.numel() - 1, count = anchors.size(0);
  const auto rows = [&](const Tensor& t) { return device.aligned(torch::stable::contiguous(t)); };
  const Tensor candidates = rows(anchors), packed = rows(boxes);
  const Tensor classes = torch::stable::contiguous(labels), bounds = torch::stable::contiguous(starts);
  Tensor out_labels = new_empty(anchors, {batch, count}, ScalarType::Int);
  Tensor matched = new_empty(anchors, {batch, count}, ScalarType::Int);
  Tensor num_positive = new_empty(anchors, {}, ScalarType::Float);
  run_match_anchors(
      *device,
      {const_data<float>(candidates), const_data<float>(packed), const_data<int64_t>(classes),
       const_data<int64_t>(bounds), count, packed.size(0), batch,
       match_rule(high_threshold, low_threshold, low_quality, min_pos_iou), mutable_data<int32_t>(out_labels),
       mutable_data<int32_t>(matched), mutable_data<float>(num_positive)});
  return {out_labels, matched, num_positive};
}

}  // namespace fcos_fast
