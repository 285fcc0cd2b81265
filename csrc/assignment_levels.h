// Reads the levels and the rule of assign_targets from the arguments of its schema.
#pragma once

#include <limits>
#include <vector>

#include "ground_truth.h"
#include "math/assign_targets.h"
#include "tensor.h"

namespace fcos_fast {

// Columns and rows are float32 numbers in the arithmetic, exact up to here.
constexpr int64_t kMaxSide = int64_t(1) << 24;
constexpr int64_t kMaxLocations = int64_t(1) << 40;

inline math::AssignmentRule read_rule(int64_t range_test, int64_t sampling, int64_t tie_break) {
  const char* op = "assign_targets";
  check_range(op, "range_test", range_test, 0, int64_t(math::RangeTest::kLeftOpen));
  check_range(op, "sampling", sampling, 0, int64_t(math::Sampling::kCircle));
  check_range(op, "tie_break", tie_break, 0, int64_t(math::TieBreak::kQuantizedArea));
  return {math::RangeTest(range_test), math::Sampling(sampling), math::TieBreak(tie_break)};
}

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

struct AssignmentOutputs {
  Tensor labels, matched, ltrb, centerness, totals;
};

inline AssignmentOutputs new_outputs(const Tensor& boxes, int64_t batch, int64_t locations) {
  return {new_empty(boxes, {batch, locations}, ScalarType::Int),
          new_empty(boxes, {batch, locations}, ScalarType::Int),
          new_empty(boxes, {batch, locations, 4}, ScalarType::Float),
          new_empty(boxes, {batch, locations}, ScalarType::Float), new_empty(boxes, {2}, ScalarType::Float)};
}

}  // namespace fcos_fast
