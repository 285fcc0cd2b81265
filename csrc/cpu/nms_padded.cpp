// One thread per image: candidates are sorted lazily and compared with the boxes kept so far.
#include "greedy_nms.h"
#include "reduction.h"

namespace fcos_fast {
namespace {

template <class Score>
std::vector<math::key_t<Score>> keys_of(const Score* scores, int64_t n) {
  std::vector<math::key_t<Score>> keys;
  keys.reserve(n);
  for (int64_t i = 0; i < n; ++i) {
    if (scores[i] != -std::numeric_limits<Score>::infinity()) {
      keys.push_back(math::make_key(scores[i], uint32_t(i)));
    }
  }
  return keys;
}

// Processes one image. Returns the number of indices written.
template <class Score, class Real>
int64_t suppress(const Score* scores, const Real* boxes, const int64_t* labels, int64_t n,
                 GreedyNms<Real> nms, int64_t max_detections, int64_t* indices) {
  auto keys = keys_of(scores, n);
  int64_t count = 0;
  in_descending_order(keys, [&](auto key) {
    const int64_t i = math::index_of(key);
    if (nms.keep(boxes + 4 * i, labels == nullptr ? 0 : labels[i])) indices[count++] = i;
    return count < max_detections;
  });
  return count;
}

template <class Score, class Real>
void run(const NmsPaddedWork& work) {
  const int64_t n = work.n, most = work.max_detections;
  const auto* boxes = static_cast<const Real*>(work.boxes);
  const auto* scores = static_cast<const Score*>(work.scores);
  const GreedyNms<Real> nms(work.boxes_dtype, work.iou_threshold);
  torch::stable::parallel_for(0, work.batch, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      int64_t* indices = work.indices + b * most;
      const int64_t* labels = work.labels == nullptr ? nullptr : work.labels + b * n;
      work.counts[b] = suppress(scores + b * n, boxes + 4 * b * n, labels, n, nms, most, indices);
      std::fill(indices + work.counts[b], indices + most, -1);
    }
  });
}

}  // namespace

void run_nms_padded(Cpu, const NmsPaddedWork& work) {
  const bool double_scores = work.scores_dtype == Dtype::kFloat64;
  if (work.boxes_dtype == Dtype::kFloat64) {
    (double_scores ? run<double, double> : run<float, double>)(work);
  } else {
    (double_scores ? run<double, float> : run<float, float>)(work);
  }
}

}  // namespace fcos_fast
