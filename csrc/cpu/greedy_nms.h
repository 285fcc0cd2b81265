// Greedy suppression by lists of the kept boxes, and candidates in falling order, sorted only as far as they are wanted.
#pragma once

#include <algorithm>
#include <limits>
#include <unordered_map>
#include <vector>

#include "../math/nms.h"
#include "kernels.h"

namespace fcos_fast {

// Kept boxes as columns; unused places hold a box that overlaps nothing.
template <class Real>
class KeptBoxes {
 public:
  explicit KeptBoxes(int64_t capacity = 16) { reserve(capacity); }

  void append(const Real box[5]) {
    if (size_ + kPadding > stride_) reserve(2 * size_);
    for (int column = 0; column < 5; ++column) values_[column * stride_ + size_] = box[column];
    ++size_;
  }
  int64_t size() const { return size_; }
  BoxColumns columns() const {
    const Real* v = values_.data();
    return {v, v + stride_, v + 2 * stride_, v + 3 * stride_, v + 4 * stride_};
  }

 private:
  static constexpr int64_t kPadding = 64;  // at least the lanes of any instruction set

  void reserve(int64_t capacity) {
    const int64_t stride = capacity + kPadding;
    const Real infinity = std::numeric_limits<Real>::infinity();
    std::vector<Real> values(5 * stride);
    for (int column = 0; column < 5; ++column) {
      Real* to = &values[column * stride];
      const Real* from = values_.data() + column * stride_;
      std::copy(from, from + size_, to);
      std::fill(to + size_, to + stride, column < 2 ? infinity : -infinity);
    }
    values_.swap(values);
    stride_ = stride;
  }

  std::vector<Real> values_;
  int64_t stride_ = 0, size_ = 0;
};

// One image's boxes, given in falling order of their scores.
template <class Real>
class GreedyNms {
 public:
  GreedyNms(Dtype dtype, double iou_threshold)
      : overlaps_any_(kernels(dtype).overlaps_any),
        threshold_(std::is_same_v<Real, double> ? iou_threshold : math::round_down(iou_threshold)) {}

  // Is the box kept? Boxes of another label do not matter.
  bool keep(const Real xyxy[4], int64_t label) {
    const Real box[5] = {xyxy[0], xyxy[1], xyxy[2], xyxy[3],
                         math::box_area(xyxy[0], xyxy[1], xyxy[2], xyxy[3])};
    KeptBoxes<Real>& list = lists_[label];
    if (overlaps_any_(list.columns(), 0, list.size(), box, threshold_)) return false;
    list.append(box);
    return true;
  }

 private:
  OverlapsAny overlaps_any_;
  double threshold_;
  std::unordered_map<int64_t, KeptBoxes<Real>> lists_;
};

// Leaves the `count` greatest keys, in any order.
template <class Key>
void keep_greatest(std::vector<Key>& keys, int64_t count) {
  if (int64_t(keys.size()) <= count) return;
  std::nth_element(keys.begin(), keys.begin() + count, keys.end(), std::greater<Key>());
  keys.resize(count);
}

// Calls take(key) from the greatest on until it says false. Keys are sorted in stretches: it mostly ends early.
template <class Key, class Take>
void in_falling_order(std::vector<Key>& keys, const Take& take) {
  auto sorted = keys.begin();
  for (int64_t stretch = 512; sorted != keys.end(); stretch *= 2) {
    const auto end = keys.end() - sorted > stretch ? sorted + stretch : keys.end();
    if (end != keys.end()) std::nth_element(sorted, end, keys.end(), std::greater<Key>());
    std::sort(sorted, end, std::greater<Key>());
    for (; sorted != end; ++sorted) {
      if (!take(*sorted)) return;
    }
  }
}

}  // namespace fcos_fast
