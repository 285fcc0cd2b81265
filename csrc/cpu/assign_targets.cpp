// Iterates over boxes: each box visits only the locations in its sampling region, so the work grows with locations plus
// boxes, not with their product.
#include "../math/assign_targets.h"

#include "../checks.h"

namespace fcos_fast {
namespace {

using namespace math;

constexpr int64_t kLocationsPerUnit = 4096;

// The range [begin, end) of columns (axis 0) or rows (axis 1) that can be in the sampling region, with a margin for
// rounding.
void candidate_cells(const float box[4], const AssignmentLevel& level, const AssignmentRule& rule, int axis,
                     int32_t* begin, int32_t* end) {
  const int32_t count = axis == 0 ? level.width : level.height;
  const float step = axis == 0 ? level.step_x : level.step_y;
  const float offset = axis == 0 ? level.offset_x : level.offset_y;
  *begin = 0;
  *end = count;
  if (!(step > 0.0f)) return;
  float low, high;
  sampling_region(box, level, rule, axis, &low, &high);
  const float limit = float(count);
  const float first = min(max((low - offset) / step - 1.0f, 0.0f), limit);
  const float last = min(max((high - offset) / step + 2.0f, 0.0f), limit);
  *begin = int32_t(first);
  *end = int32_t(last);
}

// Consecutive rows of a level of an image.
struct Unit {
  int64_t image;
  const AssignmentLevel* level;
  int32_t first_row, last_row;
};

std::vector<Unit> split(const AssignTargetsWork& work) {
  std::vector<Unit> units;
  for (int64_t b = 0; b < work.batch; ++b) {
    for (int l = 0; l < work.level_count; ++l) {
      const AssignmentLevel& level = work.levels[l];
      const int32_t rows = int32_t(std::max<int64_t>(1, kLocationsPerUnit / std::max(1, level.width)));
      for (int32_t row = 0; row < level.height; row += rows) {
        units.push_back({b, &level, row, std::min(row + rows, level.height)});
      }
    }
  }
  return units;
}

struct Assignment {
  const AssignTargetsWork& work;

  void offer(const Unit& unit, int32_t m, std::vector<float>& best, std::vector<int32_t>& matched) const {
    const AssignmentLevel& level = *unit.level;
    const float* box = work.boxes + 4 * int64_t(m);
    const float offered = preference(box, work.rule);
    if (!(offered > no_preference(work.rule)) || !level_can_assign(box, level)) return;
    int32_t left, right, top, bottom;
    candidate_cells(box, level, work.rule, 0, &left, &right);
    candidate_cells(box, level, work.rule, 1, &top, &bottom);
    top = std::max(top, unit.first_row);
    bottom = std::min(bottom, unit.last_row);
    for (int32_t i = top; i < bottom; ++i) {
      const float y = location_y(level, i);
      const int64_t row = int64_t(i - unit.first_row) * level.width;
      for (int32_t j = left; j < right; ++j) {
        if (offered > best[row + j] && can_assign(location_x(level, j), y, box, level, work.rule)) {
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
    best.assign(count, no_preference(work.rule));
    matched.assign(count, -1);
    for (int64_t m = work.starts[unit.image]; m < work.starts[unit.image + 1]; ++m)
      offer(unit, int32_t(m), best, matched);

    const int64_t first = unit.image * work.locations + level.first + int64_t(unit.first_row) * level.width;
    int64_t positive = 0;
    double centerness_sum = 0;
    for (int64_t k = 0; k < count; ++k) {
      const int64_t at = first + k;
      const int32_t m = matched[k];
      float ltrb[4] = {0, 0, 0, 0};
      float quality = 0;
      if (m >= 0) {
        const int32_t i = unit.first_row + int32_t(k / level.width), j = int32_t(k % level.width);
        distances(location_x(level, j), location_y(level, i), work.boxes + 4 * int64_t(m), ltrb);
        quality = centerness(ltrb);
        positive += 1;
        centerness_sum += quality;
      }
      work.out_labels[at] = m >= 0 ? narrow_label(work.labels[m]) : -1;
      work.out_matched[at] = m;
      std::copy(ltrb, ltrb + 4, work.out_ltrb + 4 * at);
      work.out_centerness[at] = quality;
    }
    return {positive, centerness_sum};
  }
};

}  // namespace

void run_assign_targets(Cpu, const AssignTargetsWork& work) {
  check_starts("assign_targets", work.starts, work.batch, work.box_count);
  const Assignment assignment{work};
  const auto units = split(work);
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
  work.out_totals[0] = float(positive);
  work.out_totals[1] = float(centerness_sum);
}

}  // namespace fcos_fast
