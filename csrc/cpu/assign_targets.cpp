// Assignment from the boxes' side: a box is offered to the few locations of its sampling region, so the work
// grows with locations plus boxes, not with their product.
#include "../assignment_levels.h"

namespace fcos_fast {
namespace {

using namespace math;

constexpr int64_t kLocationsPerUnit = 4096;

// False only if no location of the level can take the box; spares the search.
bool level_may_take(const float box[4], const AssignmentLevel& level) {
  const float w = box[2] - box[0], h = box[3] - box[1];
  if (!(w > 0.0f) || !(h > 0.0f)) return false;
  // Inside a box the greatest distance lies between half its longer side and the whole of it.
  const float side = larger(w, h), slack = 1e-4f * side + 1e-3f;
  return 0.5f * side - slack <= level.upper && side + slack >= level.lower;
}

// The columns (axis 0) or rows (axis 1) whose locations may lie in the sampling region: [begin, end), with a
// margin for rounding.
void candidate_cells(const float box[4], const AssignmentLevel& level, const AssignmentRule& rule, int axis,
                     int32_t* begin, int32_t* end) {
  const int32_t count = axis == 0 ? level.width : level.height;
  const float step = axis == 0 ? level.step_x : level.step_y;
  const float offset = axis == 0 ? level.offset_x : level.offset_y;
  *begin = 0;
  *end = count;
  if (!(step > 0.0f)) return;
  float low = box[axis], high = box[axis + 2];
  if (rule.sampling != Sampling::kBox) {
    const float center = (low + high) / 2.0f;
    low = larger(low, center - level.reach);
    high = smaller(high, center + level.reach);
  }
  const float limit = float(count);
  const float first = smaller(larger((low - offset) / step - 1.0f, 0.0f), limit);
  const float last = smaller(larger((high - offset) / step + 2.0f, 0.0f), limit);
  *begin = int32_t(first);
  *end = int32_t(last);
}

// Some rows of a level of an image.
struct Unit {
  int64_t image;
  const AssignmentLevel* level;
  int32_t first_row, last_row;
};

std::vector<Unit> split(int64_t batch, const std::vector<AssignmentLevel>& levels) {
  std::vector<Unit> units;
  for (int64_t b = 0; b < batch; ++b) {
    for (const auto& level : levels) {
      const int32_t rows = int32_t(std::max<int64_t>(1, kLocationsPerUnit / std::max(1, level.width)));
      for (int32_t row = 0; row < level.height; row += rows) {
        units.push_back({b, &level, row, std::min(row + rows, level.height)});
      }
    }
  }
  return units;
}

struct Assignment {
  AssignmentRule rule;
  const float* boxes;
  const int64_t* labels;
  const int64_t* starts;
  int64_t locations;
  int32_t* out_labels;
  int32_t* out_matched;
  float* out_ltrb;
  float* out_centerness;

  void offer(const Unit& unit, int32_t m, std::vector<float>& best, std::vector<int32_t>& matched) const {
    const AssignmentLevel& level = *unit.level;
    const float* box = boxes + 4 * int64_t(m);
    const float offered = preference(box, rule);
    if (!(offered > no_preference(rule)) || !level_may_take(box, level)) return;
    int32_t left, right, top, bottom;
    candidate_cells(box, level, rule, 0, &left, &right);
    candidate_cells(box, level, rule, 1, &top, &bottom);
    top = std::max(top, unit.first_row);
    bottom = std::min(bottom, unit.last_row);
    for (int32_t i = top; i < bottom; ++i) {
      const float y = location_y(level, i);
      const int64_t row = int64_t(i - unit.first_row) * level.width;
      for (int32_t j = left; j < right; ++j) {
        if (offered > best[row + j] && may_take(location_x(level, j), y, box, level, rule)) {
          best[row + j] = offered;
          matched[row + j] = m;
        }
      }
    }
  }

  // Returns the number of positive locations and the sum of their centerness.
  std::pair<int64_t, double> run(const Unit& unit, std::vector<float>& best,
                                 std::vector<int32_t>& matched) const {
    const AssignmentLevel& level = *unit.level;
    const int64_t count = int64_t(unit.last_row - unit.first_row) * level.width;
    best.assign(count, no_preference(rule));
    matched.assign(count, -1);
    for (int64_t m = starts[unit.image]; m < starts[unit.image + 1]; ++m)
      offer(unit, int32_t(m), best, matched);

    const int64_t first = unit.image * locations + level.first + int64_t(unit.first_row) * level.width;
    int64_t positive = 0;
    double centerness_sum = 0;
    for (int64_t k = 0; k < count; ++k) {
      const int64_t at = first + k;
      const int32_t m = matched[k];
      float ltrb[4] = {0, 0, 0, 0};
      float quality = 0;
      if (m >= 0) {
        const int32_t i = unit.first_row + int32_t(k / level.width), j = int32_t(k % level.width);
        distances(location_x(level, j), location_y(level, i), boxes + 4 * int64_t(m), ltrb);
        quality = centerness(ltrb);
        positive += 1;
        centerness_sum += quality;
      }
      out_labels[at] = m >= 0 ? narrow_label(labels[m]) : -1;
      out_matched[at] = m;
      std::copy(ltrb, ltrb + 4, out_ltrb + 4 * at);
      out_centerness[at] = quality;
    }
    return {positive, centerness_sum};
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> assign_targets(
    const Tensor& boxes, const Tensor& labels, const Tensor& starts, std::vector<int64_t> sizes,
    std::vector<double> geometry, int64_t range_test, int64_t sampling, int64_t tie_break, double radius) {
  check_ground_truth("assign_targets", boxes, labels, starts);
  const auto levels = read_levels(sizes, geometry, radius);
  const int64_t batch = starts.numel() - 1;
  const int64_t locations = count_locations(levels);
  const Tensor packed = torch::stable::contiguous(boxes);
  const Tensor classes = torch::stable::contiguous(labels);
  const Tensor bounds = torch::stable::contiguous(starts);
  AssignmentOutputs out = new_outputs(boxes, batch, locations);
  const Assignment assignment{read_rule(range_test, sampling, tie_break),
                              static_cast<const float*>(packed.const_data_ptr()),
                              static_cast<const int64_t*>(classes.const_data_ptr()),
                              static_cast<const int64_t*>(bounds.const_data_ptr()),
                              locations,
                              static_cast<int32_t*>(out.labels.mutable_data_ptr()),
                              static_cast<int32_t*>(out.matched.mutable_data_ptr()),
                              static_cast<float*>(out.ltrb.mutable_data_ptr()),
                              static_cast<float*>(out.centerness.mutable_data_ptr())};
  check_starts("assign_targets", assignment.starts, batch, packed.size(0));

  const auto units = split(batch, levels);
  std::vector<std::pair<int64_t, double>> counts(units.size());
  torch::stable::parallel_for(0, int64_t(units.size()), 1, [&](int64_t begin, int64_t end) {
    std::vector<float> best;
    std::vector<int32_t> matched;
    for (int64_t u = begin; u < end; ++u) counts[u] = assignment.run(units[u], best, matched);
  });
  double positive = 0, centerness_sum = 0;
  for (const auto& [count, sum] : counts) {
    positive += double(count);
    centerness_sum += sum;
  }
  auto* totals = static_cast<float*>(out.totals.mutable_data_ptr());
  totals[0] = float(positive);
  totals[1] = float(centerness_sum);
  return {out.labels, out.matched, out.ltrb, out.centerness, out.totals};
}

}  // namespace
}  // namespace fcos_fast

STABLE_TORCH_LIBRARY_IMPL(fcos_fast, CPU, m) {
  m.impl("assign_targets", TORCH_BOX(&fcos_fast::assign_targets));
}
