// Exact greedy suppression by a list of the kept boxes: a candidate, in order of score, is tested against the
// boxes kept before it, kLanes at a time, and the test ends with the first that fells it. Classes are
// separate lists.
#include "../math/nms.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "greedy_nms.h"
#include "reduction.h"

namespace fcos_fast {
namespace {

constexpr int64_t kBlock = 512;            // candidates tested in parallel against the boxes kept before them
constexpr int64_t kManyCandidates = 2048;  // from here on a list is worth all threads

// ---- order ----

// Indices by falling score, the lower index first among equals: a stable radix sort of the float32 bits.
std::vector<int32_t> order_by_score(const float* scores, int64_t n) {
  constexpr int kBits = 11, kBuckets = 1 << kBits;
  std::vector<uint32_t> keys(n), keys_to(n);
  std::vector<int32_t> order(n), order_to(n);
  for (int64_t i = 0; i < n; ++i) keys[i] = ~math::ascending(scores[i]);
  std::iota(order.begin(), order.end(), 0);
  for (int shift = 0; shift < 32; shift += kBits) {
    std::vector<int64_t> next(kBuckets + 1, 0);
    for (int64_t i = 0; i < n; ++i) ++next[((keys[i] >> shift) & (kBuckets - 1)) + 1];
    std::partial_sum(next.begin(), next.end(), next.begin());
    for (int64_t i = 0; i < n; ++i) {
      const int64_t to = next[(keys[i] >> shift) & (kBuckets - 1)]++;
      keys_to[to] = keys[i];
      order_to[to] = order[i];
    }
    keys.swap(keys_to);
    order.swap(order_to);
  }
  return order;
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

// Candidates of one class after the other, each class in order of score.
struct Lists {
  std::vector<int32_t> ranks;   // places in the order of scores
  std::vector<int64_t> starts;  // of the lists, and the end
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
  const std::vector<int32_t>& order;
  OverlapsAny overlaps_any;
  double threshold;
  std::vector<uint8_t>& kept;  // by rank

  void read(int32_t rank, Real box[5]) const {
    const Real* row = boxes + 4 * int64_t(order[rank]);
    std::copy(row, row + 4, box);
    box[4] = math::box_area(row[0], row[1], row[2], row[3]);
  }

  void run(const int32_t* ranks, int64_t n) const {
    KeptBoxes<Real> list(n);
    for (int64_t begin = 0; begin < n; begin += kBlock) {
      const int64_t end = std::min(begin + kBlock, n);
      const int64_t known = list.size();
      uint8_t alive[kBlock];
      // One parallel call per block pays only when there is much to compare with.
      const int64_t grain = n >= kManyCandidates && known >= kBlock ? kBlock / 8 : kBlock;
      torch::stable::parallel_for(begin, end, grain, [&](int64_t from, int64_t to) {
        Real box[5];
        for (int64_t i = from; i < to; ++i) {
          read(ranks[i], box);
          alive[i - begin] = !overlaps_any(list.columns(), 0, known, box, threshold);
        }
      });
      Real box[5];
      for (int64_t i = begin; i < end; ++i) {
        if (!alive[i - begin]) continue;
        read(ranks[i], box);
        // The boxes before `known` were passed above. A read past the last one meets the padding.
        if (overlaps_any(list.columns(), known, list.size(), box, threshold)) continue;
        list.append(box);
        kept[ranks[i]] = 1;
      }
    }
  }
};

template <class Real>
void suppress(const NmsWork& work, const std::vector<int32_t>& order, const Lists& lists,
              std::vector<uint8_t>& kept) {
  const double threshold =
      std::is_same_v<Real, double> ? work.iou_threshold : math::round_down(work.iou_threshold);
  const Suppression<Real> suppression{static_cast<const Real*>(work.boxes), order,
                                      kernels(work.boxes_dtype).overlaps_any, threshold, kept};
  auto run = [&](int64_t list) {
    suppression.run(lists.ranks.data() + lists.starts[list], lists.starts[list + 1] - lists.starts[list]);
  };
  const int64_t count = int64_t(lists.starts.size()) - 1;
  auto is_long = [&](int64_t list) { return lists.starts[list + 1] - lists.starts[list] >= kManyCandidates; };
  // Long lists use all threads inside, one list at a time; the others are spread over the threads.
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
