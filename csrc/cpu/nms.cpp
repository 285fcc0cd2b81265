// Exact greedy suppression: each candidate, in score order, is compared with the boxes kept so far, several at a time,
// until one suppresses it. Each class has its own list. In long lists, a grid finds the kept boxes nearby.
#include "../math/nms.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "kept_grid.h"
#include "reduction.h"

namespace fcos_fast {
namespace {

constexpr int64_t kBlock = 512;            // candidates compared in parallel with the boxes kept so far
constexpr int64_t kManyCandidates = 2048;  // lists of at least this length use all threads and a grid

// ---- order ----

// Indices in descending score order, by a stable radix sort of the float32 bits; equal scores keep their order.
std::vector<int32_t> order_by_score(const float* scores, int64_t n) {
  constexpr int kBits = 11, kBuckets = 1 << kBits, kPasses = 3;
  std::vector<uint64_t> items(n), sorted(n);  // score bits above the index
  std::vector<int32_t> next(kPasses * kBuckets, 0);
  auto bucket = [](uint64_t item, int pass) { return (item >> (32 + pass * kBits)) & (kBuckets - 1); };
  for (int64_t i = 0; i < n; ++i) {
    items[i] = uint64_t(~math::ascending(scores[i])) << 32 | uint64_t(i);
    for (int pass = 0; pass < kPasses; ++pass) ++next[pass * kBuckets + bucket(items[i], pass)];
  }
  for (int pass = 0; pass < kPasses; ++pass) {
    int32_t* to = &next[pass * kBuckets];
    std::exclusive_scan(to, to + kBuckets, to, 0);
    for (const uint64_t item : items) sorted[to[bucket(item, pass)]++] = item;
    items.swap(sorted);
  }
  return std::vector<int32_t>(items.begin(), items.end());  // the lower 32 bits
}

std::vector<int32_t> order_by_score(const double* scores, int64_t n) {
  std::vector<int32_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return std::isnan(scores[a]) ? !std::isnan(scores[b]) : scores[a] > scores[b];
  });
  return order;
}

std::vector<int32_t> order_by_score(const NmsWork& work) {
  if (work.scores_dtype == Dtype::kFloat64)
    return order_by_score(static_cast<const double*>(work.scores), work.n);
  return order_by_score(static_cast<const float*>(work.scores), work.n);
}

// Candidates grouped by class, each class in score order.
struct Lists {
  std::vector<int32_t> ranks;   // positions in `order`
  std::vector<int64_t> starts;  // of the lists, followed by the end
};

Lists split_by_class(const std::vector<int32_t>& order, const int64_t* idxs) {
  const int64_t n = int64_t(order.size());
  Lists lists{std::vector<int32_t>(n), {0}};
  std::iota(lists.ranks.begin(), lists.ranks.end(), 0);
  if (idxs != nullptr) {
    auto class_of = [&](int32_t rank) { return idxs[order[rank]]; };
    std::stable_sort(lists.ranks.begin(), lists.ranks.end(),
                     [&](int32_t a, int32_t b) { return class_of(a) < class_of(b); });
    for (int64_t i = 1; i < n; ++i) {
      if (class_of(lists.ranks[i]) != class_of(lists.ranks[i - 1])) lists.starts.push_back(i);
    }
  }
  lists.starts.push_back(n);
  return lists;
}

// ---- suppression ----

template <class Real>
struct Suppression {
  const Real* boxes;  // (N, 4)
  BoxExtent<Real> extent;
  const std::vector<int32_t>& order;
  OverlapsAny overlaps_any;
  double threshold;
  std::vector<uint8_t>& kept;  // by rank

  void run(const int32_t* ranks, int64_t n) const {
    KeptGrid<Real> grid = n < kManyCandidates ? KeptGrid<Real>(threshold) : KeptGrid<Real>(threshold, extent);
    std::vector<int32_t> compared(n);
    int64_t known = 0, block = kBlock;  // known: number of boxes kept so far
    for (int64_t begin = 0; begin < n;) {
      const int64_t end = std::min(begin + block, n);
      // Threads only pay off if there is much to compare.
      const int64_t grain = n >= kManyCandidates && known >= kBlock ? kBlock / 8 : kBlock;
      torch::stable::parallel_for(begin, end, grain, [&](int64_t from, int64_t to) {
        for (int64_t i = from; i < to; ++i) compared[i] = compare(grid, ranks[i]);
      });
      const int64_t added = keep_survivors(grid, ranks, compared, begin, end);
      // If hardly any box is kept, a longer block has little sequential work.
      if (added < (end - begin) / 16) block *= 2;
      known += added;
      begin = end;
    }
  }

 private:
  static constexpr int32_t kSuppressed = -1;

  void read(int32_t rank, Real box[5]) const {
    const Real* row = boxes + 4 * int64_t(order[rank]);
    std::copy(row, row + 4, box);
    box[4] = math::box_area(row[0], row[1], row[2], row[3]);
  }

  // The number of kept boxes in its cell that a candidate was compared with, or kSuppressed.
  int32_t compare(const KeptGrid<Real>& grid, int32_t rank) const {
    Real box[5];
    read(rank, box);
    const KeptBoxes<Real>& near = grid.near(box);
    return overlaps_any(near.tiles(), 0, near.size(), box, threshold) ? kSuppressed : int32_t(near.size());
  }

  int64_t keep_survivors(KeptGrid<Real>& grid, const int32_t* ranks, const std::vector<int32_t>& compared,
                         int64_t begin, int64_t end) const {
    int64_t count = 0;
    Real box[5];
    for (int64_t i = begin; i < end; ++i) {
      if (compared[i] == kSuppressed) continue;
      read(ranks[i], box);
      const KeptBoxes<Real>& near = grid.near(box);
      // Reads past the last box see the padding.
      if (overlaps_any(near.tiles(), compared[i], near.size(), box, threshold)) continue;
      grid.append(box);
      kept[ranks[i]] = 1;
      ++count;
    }
    return count;
  }
};

template <class Real>
void suppress(const NmsWork& work, const std::vector<int32_t>& order, const Lists& lists,
              std::vector<uint8_t>& kept) {
  const double threshold =
      std::is_same_v<Real, double> ? work.iou_threshold : math::round_down(work.iou_threshold);
  const auto* rows = static_cast<const Real*>(work.boxes);
  const auto extent = work.n < kManyCandidates ? BoxExtent<Real>{} : extent_of(rows, work.n);
  const Suppression<Real> suppression{rows,      extent, order, kernels(work.boxes_dtype).overlaps_any,
                                      threshold, kept};
  auto run = [&](int64_t list) {
    suppression.run(lists.ranks.data() + lists.starts[list], lists.starts[list + 1] - lists.starts[list]);
  };
  const int64_t count = int64_t(lists.starts.size()) - 1;
  auto is_long = [&](int64_t list) { return lists.starts[list + 1] - lists.starts[list] >= kManyCandidates; };
  // Long lists are processed one at a time, each on all threads; the others run in parallel, one thread each.
  for (int64_t list = 0; list < count; ++list) {
    if (is_long(list)) run(list);
  }
  torch::stable::parallel_for(0, count, 4, [&](int64_t begin, int64_t end) {
    for (int64_t list = begin; list < end; ++list) {
      if (!is_long(list)) run(list);
    }
  });
}

}  // namespace

std::vector<int64_t> run_nms(Cpu, const NmsWork& work) {
  const auto order = order_by_score(work);
  const Lists lists = split_by_class(order, work.idxs);
  std::vector<uint8_t> kept(work.n, 0);
  (work.boxes_dtype == Dtype::kFloat64 ? suppress<double> : suppress<float>)(work, order, lists, kept);
  std::vector<int64_t> indices;
  for (int64_t rank = 0; rank < work.n; ++rank) {
    if (kept[rank]) indices.push_back(order[rank]);
  }
  return indices;
}

}  // namespace fcos_fast
