// A spatial grid of kept boxes, so that a candidate is compared only with boxes that can suppress it.
#pragma once

#include <cmath>

#include "greedy_nms.h"

namespace fcos_fast {

// The range of the boxes' centers and their mean size, in x and y.
template <class Real>
struct BoxExtent {
  Real low[2], high[2];
  double mean_side[2];
};

template <class Real>
Real box_center(const Real box[4], int axis) {
  return Real(0.5) * (box[axis] + box[axis + 2]);
}

// NaN coordinates do not affect the range; they make the mean NaN.
template <class Real>
BoxExtent<Real> extent_of(const Real* boxes, int64_t n) {
  constexpr Real infinity = std::numeric_limits<Real>::infinity();
  BoxExtent<Real> extent{{infinity, infinity}, {-infinity, -infinity}, {0, 0}};
  for (int64_t i = 0; i < n; ++i) {
    const Real* box = boxes + 4 * i;
    for (int axis = 0; axis < 2; ++axis) {
      const Real center = box_center(box, axis);
      extent.low[axis] = std::min(extent.low[axis], center);
      extent.high[axis] = std::max(extent.high[axis], center);
      extent.mean_side[axis] += double(box[axis + 2] - box[axis]);
    }
  }
  for (double& side : extent.mean_side) side /= double(n);
  return extent;
}

// Each kept box is stored in every cell that can contain the center of a box it suppresses. A candidate is compared
// only with the cell of its own center.
//
// Bounds of that center: if the IoU is above t, the intersection is wider than t times either box. So it extends to
// within (1/2 - t) widths of the candidate's center, and the candidate is at most 1/t times as wide as the kept box:
// the center is inside the kept box, expanded on each side by (1/2 - t) / t of its width if t < 1/2. The same holds for
// heights.
template <class Real>
class KeptGrid {
 public:
  // A grid of a single cell.
  explicit KeptGrid(double threshold) : threshold_(Real(threshold)), cells_(1) {}

  // Cells are half the size of a mean box with its margins, so that a box is in about nine of them.
  KeptGrid(double threshold, const BoxExtent<Real>& extent) : KeptGrid(threshold) {
    growth_ = Real(std::max(0.0, 0.5 / threshold - 1) + kRounding);
    for (int axis = 0; axis < 2; ++axis) {
      const double range = double(extent.high[axis]) - double(extent.low[axis]);
      const double cells = 2 * range / ((1 + 2 * double(growth_)) * extent.mean_side[axis]);
      const double side = std::floor(std::max(1.0, std::min(cells, kMostCells)));  // 1 if `cells` is NaN
      origin_[axis] = extent.low[axis];
      last_[axis] = Real(side - 1);
      cells_per_unit_[axis] = Real(side / range);
    }
    columns_ = int64_t(last_[0]) + 1;
    cells_.resize(columns_ * (int64_t(last_[1]) + 1));
  }

  // All kept boxes that can suppress this candidate, and some others.
  const KeptBoxes<Real>& near(const Real box[5]) const {
    return cells_[columns_ * index(box_center(box, 1), 1) + index(box_center(box, 0), 0)];
  }

  void append(const Real box[5]) {
    int64_t first[2], last[2];
    // The IoU is unreliable if areas underflow.
    const bool precise = !(box[4] > 0 && box[4] * threshold_ < Real(1e-30));
    for (int axis = 0; axis < 2; ++axis) {
      const Real margin =
          precise ? growth_ * (box[axis + 2] - box[axis]) : std::numeric_limits<Real>::infinity();
      first[axis] = index(box[axis] - margin, axis);
      last[axis] = index(box[axis + 2] + margin, axis);
    }
    for (int64_t row = first[1]; row <= last[1]; ++row) {
      for (int64_t column = first[0]; column <= last[0]; ++column) {
        cells_[columns_ * row + column].append(box);
      }
    }
  }

 private:
  static constexpr double kMostCells = 16;   // in a row or column
  static constexpr double kRounding = 1e-5;  // far greater than the rounding error of an IoU

  // Monotonic in x. The cell of a NaN does not matter, since it overlaps nothing.
  int64_t index(Real x, int axis) const {
    const Real at = (x - origin_[axis]) * cells_per_unit_[axis];
    return int32_t(std::max(Real(0), std::min(last_[axis], at)));
  }

  Real threshold_, growth_ = 0;
  Real origin_[2] = {0, 0}, cells_per_unit_[2] = {0, 0}, last_[2] = {0, 0};
  int64_t columns_ = 1;
  std::vector<KeptBoxes<Real>> cells_;
};

}  // namespace fcos_fast
