// An image per thread: keys of score and index, sorted as far as they are wanted, against the boxes kept so far.
#include "../nms.h"
#include "greedy_nms.h"

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

// One image. Returns how many indices it wrote.
template <class Score, class Real>
int64_t suppress(const Score* scores, const Real* boxes, const int64_t* labels, int64_t n,
                 GreedyNms<Real> nms, int64_t max_detections, int64_t* indices) {
  auto keys = keys_of(scores, n);
  int64_t count = 0;
  in_falling_order(keys, [&](auto key) {
    const int64_t i = math::index_of(key);
    if (nms.keep(boxes + 4 * i, labels == nullptr ? 0 : labels[i])) indices[count++] = i;
    return count < max_detections;
  });
  return count;
}

template <class Score, class Real>
void run(const Tensor& boxes, const Tensor& scores, const int64_t* labels, double iou_threshold,
         Tensor& indices, Tensor& counts) {
  const int64_t n = boxes.size(1), max_detections = indices.size(1);
  const auto* b = static_cast<const Real*>(boxes.const_data_ptr());
  const auto* s = static_cast<const Score*>(scores.const_data_ptr());
  auto* out = static_cast<int64_t*>(indices.mutable_data_ptr());
  auto* out_counts = static_cast<int64_t*>(counts.mutable_data_ptr());
  const GreedyNms<Real> nms(boxes.scalar_type(), iou_threshold);
  torch::stable::parallel_for(0, boxes.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t image = begin; image < end; ++image) {
      int64_t* rows = out + image * max_detections;
      out_counts[image] = suppress(s + image * n, b + 4 * image * n, labels ? labels + image * n : nullptr, n,
                                   nms, max_detections, rows);
      std::fill(rows + out_counts[image], rows + max_detections, -1);
    }
  });
}

std::tuple<Tensor, Tensor> nms_padded(const Tensor& boxes, const Tensor& scores, std::optional<Tensor> labels,
                                      double iou_threshold, int64_t max_detections) {
  check_nms_padded(boxes, scores, labels, iou_threshold, max_detections);
  const Tensor b = torch::stable::contiguous(converted(boxes, sum_type(boxes.scalar_type())));
  const Tensor s = torch::stable::contiguous(converted(scores, sum_type(scores.scalar_type())));
  Tensor classes;
  if (labels.has_value()) classes = torch::stable::contiguous(converted(*labels, ScalarType::Long));
  const auto* l = labels.has_value() ? static_cast<const int64_t*>(classes.const_data_ptr()) : nullptr;
  Tensor indices = new_empty(boxes, {boxes.size(0), max_detections}, ScalarType::Long);
  Tensor counts = new_empty(boxes, {boxes.size(0)}, ScalarType::Long);
  const bool double_scores = s.scalar_type() == ScalarType::Double;
  if (b.scalar_type() == ScalarType::Double) {
    (double_scores ? run<double, double> : run<float, double>)(b, s, l, iou_threshold, indices, counts);
  } else {
    (double_scores ? run<double, float> : run<float, float>)(b, s, l, iou_threshold, indices, counts);
  }
  return {indices, counts};
}

}  // namespace
}  // namespace fcos_fast

STABLE_TORCH_LIBRARY_IMPL(fcos_fast, CPU, m) { m.impl("nms_padded", TORCH_BOX(&fcos_fast::nms_padded)); }
