// Device-independent part of assign_targets; see math/assign_targets.h.
#pragma once

#include <limits>

#include "device_of.h"
#include "math/assign_targets.h"

namespace fcos_fast {

// Column and row indices are converted to float32, which is exact up to 2^24.
constexpr int64_t kMaxSide = int64_t(1) << 24;
constexpr int64_t kMaxLocations = int64_t(1) << 40;

inline std::vector<math::AssignmentLevel> read_levels(const std::vector<int64_t>& sizes,
                                                      const std::vector<double>& geometry, double radius) {
  const size_t count = sizes.size() / 2;
  STD_TORCH_CHECK(sizes.size() == 2 * count && geometry.size() == 7 * count,
                  "fcos_fast::assign_targets: expected 2 sizes and 7 numbers of geometry per level, got ",
                  sizes.size(), " and ", geometry.size());
  check_number("assign_targets", "radius", radius, 0, std::numeric_limits<double>::max());
  for (const double g : geometry) check_number("assign_targets", "geometry", g, -INFINITY, INFINITY);
  std::vector<math::AssignmentLevel> levels;
  int64_t first = 0;
  for (size_t l = 0; l < count; ++l) {
    const double* g = &geometry[7 * l];
    check_range("assign_targets", "height of a level", sizes[2 * l], 0, kMaxSide);
    check_range("assign_targets", "width of a level", sizes[2 * l + 1], 0, kMaxSide);
    math::AssignmentLevel level;
    level.height = int32_t(sizes[2 * l]);
    level.width = int32_t(sizes[2 * l + 1]);
    level.first = first;
    level.reach = float(radius * g[0]);
    level.step_y = float(g[1]);
    level.step_x = float(g[2]);
    level.offset_y = float(g[3]);
    level.offset_x = float(g[4]);
    level.lower = float(g[5]);
    level.upper = float(g[6]);
    levels.push_back(level);
    first += sizes[2 * l] * sizes[2 * l + 1];
    check_range("assign_targets", "number of locations", first, 0, kMaxLocations);
  }
  return levels;
}

inline int64_t count_locations(const std::vector<math::AssignmentLevel>& levels) {
  return levels.empty() ? 0 : levels.back().first + int64_t(levels.back().height) * levels.back().width;
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> assign_targets(
    const Tensor& boxes, const Tensor& labels, const Tensor& starts, std::vector<int64_t> sizes,
    std::vector<double> geometry, std::string range_test, std::string sampling, std::string tie_break,
    double radius) {
  const char* op = "assign_targets";
  check_ground_truth(op, boxes, labels, starts);
  const math::AssignmentRule rule{
      read_choice<math::RangeTest>(op, "range_test", range_test, math::kRangeTests),
      read_choice<math::Sampling>(op, "sampling", sampling, math::kSamplings),
      read_choice<math::TieBreak>(op, "tie_break", tie_break, math::kTieBreaks)};
  const auto levels = read_levels(sizes, geometry, radius);
  DeviceOf<Device> device(boxes);
  const int64_t batch = starts.numel() - 1, locations = count_locations(levels);
  const Tensor packed = device.aligned(torch::stable::contiguous(boxes));
  const Tensor classes = torch::stable::contiguous(labels), bounds = torch::stable::contiguous(starts);
  Tensor out_labels = new_empty(boxes, {batch, locations}, ScalarType::Int);
  Tensor matched = new_empty(boxes, {batch, locations}, ScalarType::Int);
  Tensor ltrb = new_empty(boxes, {batch, locations, 4}, ScalarType::Float);
  Tensor centerness = new_empty(boxes, {batch, locations}, ScalarType::Float);
  Tensor totals = new_empty(boxes, {2}, ScalarType::Float);
  run_assign_targets(
      *device, {const_data<float>(packed), const_data<int64_t>(classes), const_data<int64_t>(bounds),
                packed.size(0), batch, locations, levels.data(), int(levels.size()), rule,
                mutable_data<int32_t>(out_labels), mutable_data<int32_t>(matched), mutable_data<float>(ltrb),
                mutable_data<float>(centerness), mutable_data<float>(totals)});
  return {out_labels, matched, ltrb, centerness, totals};
}

}  // namespace fcos_fast
