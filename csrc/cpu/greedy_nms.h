// Greedy suppression with one list of kept boxes per label. Candidates are sorted lazily, in descending order.
#pragma once

#include <algorithm>
#include <limits>
#include <unordered_map>
#include <vector>

#include "../math/nms.h"
#include "kernels.h"

namespace fcos_fast {

template <class Real>
class KeptBoxes {
 public:
  void append(const Real box[5]) {
    constexpr int64_t kBoxes = BoxTile<Real>::kBoxes;
    if (size_ == kBoxes * int64_t(tiles_.size())) tiles_.push_back(empty_tile());
    BoxTile<Real>& tile = tiles_.back();
    const int64_t at = size_++ % kBoxes;
    tile.x1[at] = box[0], tile.y1[at] = box[1], tile.x2[at] = box[2], tile.y2[at] = box[3];
    tile.area[at] = box[4];
  }
  int64_t size() const { return size_; }
  const void* tiles() const { return tiles_.data(); }

 private:
  static BoxTile<Real> empty_tile() {
    const Real infinity = std::numeric_limits<Real>::infinity();
    BoxTile<Real> tile;
    for (auto* column : {&tile.x1, &tile.y1, &tile.area}) {
      std::fill(std::begin(*column), std::end(*column), infinity);
    }
    for (auto* column : {&tile.x2, &tile.y2}) std::fill(std::begin(*column), std::end(*column), -infinity);
    return tile;
  }

  std::vector<BoxTile<Real>> tiles_;
  int64_t size_ = 0;
};

// NMS of one image, whose boxes arrive in descending score order.
template <class Real>
class GreedyNms {
 public:
  GreedyNms(Dtype dtype, double iou_threshold)
      : overlaps_any_(kernels(dtype).overlaps_any),
        threshold_(std::is_same_v<Real, double> ? iou_threshold : math::round_down(iou_threshold)) {}

  // Is the box kept? Only compares boxes with the same label.
  bool keep(const Real xyxy[4], int64_t label) {
    const Real box[5] = {xyxy[0], xyxy[1], xyxy[2], xyxy[3],
                         math::box_area(xyxy[0], xyxy[1], xyxy[2], xyxy[3])};
    KeptBoxes<Real>& list = lists_[label];
    if (overlaps_any_(list.tiles(), 0, list.size(), box, threshold_)) return false;
    list.append(box);
    return true;
  }

 private:
  OverlapsAny overlaps_any_;
  double threshold_;
  std::unordered_map<int64_t, KeptBoxes<Real>> lists_;
};

// Keeps only the `count` greatest keys, in any order.
template <class Key>
void keep_greatest(std::vector<Key>& keys, int64_t count) {
  if (int64_t(keys.size()) <= count) return;
  std::nth_element(keys.begin(), keys.begin() + count, keys.end(), std::greater<Key>());
  keys.resize(count);
}

// Calls take(key) in descending order until it returns false. Sorts the keys in chunks, since it usually ends early.
template <class Key, class Take>
void in_descending_order(std::vector<Key>& keys, const Take& take) {
  auto sorted = keys.begin();
  for (int64_t chunk = 512; sorted != keys.end(); chunk *= 2) {
    const auto end = keys.end() - sorted > chunk ? sorted + chunk : keys.end();
    if (end != keys.end()) std::nth_element(sorted, end, keys.end(), std::greater<Key>());
    std::sort(sorted, end, std::greater<Key>());
    for (; sorted != end; ++sorted) {
      if (!take(*sorted)) return;
    }
  }
}

}  // namespace fcos_fast
