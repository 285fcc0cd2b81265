// Block after block of anchors against the boxes of every image. What is kept is the greatest IoU of each box in each
// block: it tells which blocks hold a box's best anchors, and these few are looked at once more.
#include "../math/match_anchors.h"
#include "../ground_truth.h"
#include "kernels.h"

namespace fcos_fast {
namespace {

constexpr int kBlock = AnchorBlock::kSize;

// Anchors [first, first + count) as columns, and the box around them.
AnchorBlock load_block(const float* anchors, int64_t first, int count) {
  AnchorBlock block{};  // what is not an anchor has no area and overlaps nothing
  block.bounds[0] = block.bounds[1] = INFINITY;
  block.bounds[2] = block.bounds[3] = -INFINITY;
  for (int i = 0; i < count; ++i) {
    const float* a = anchors + 4 * (first + i);
    block.x1[i] = a[0], block.y1[i] = a[1], block.x2[i] = a[2], block.y2[i] = a[3];
    block.area[i] = math::box_area(a[0], a[1], a[2], a[3]);
    for (int c = 0; c < 2; ++c) {
      block.bounds[c] = math::smaller(a[c], block.bounds[c]);
      block.bounds[c + 2] = math::larger(a[c + 2], block.bounds[c + 2]);
    }
  }
  return block;
}

bool may_overlap(const AnchorBlock& block, const float* box) {
  return math::overlap(box[0], box[2], block.bounds[0], block.bounds[2]) > 0 &&
         math::overlap(box[1], box[3], block.bounds[1], block.bounds[3]) > 0;
}

struct Matching {
  const float* anchors;
  int64_t anchor_count, batch;
  std::vector<float> boxes;  // x1, y1, x2, y2, area; area 0 where the box takes part in nothing
  const int64_t* labels;
  const int64_t* starts;
  math::MatchThresholds thresholds;
  int32_t* out_labels;
  int32_t* out_matched;
  MatchKernels kernels;

  int64_t blocks() const { return (anchor_count + kBlock - 1) / kBlock; }
  int64_t box_count() const { return int64_t(boxes.size() / 5); }

  // Matches a block of anchors in an image. greatest: per box, of this block. Where best_of_boxes is given, anchors that
  // reach it keep their box. Returns the number of positive anchors.
  int64_t match(const AnchorBlock& block, int64_t first, int64_t image, float* greatest,
                const float* best_of_boxes) const {
    float best[kBlock] = {};
    int32_t matched[kBlock];
    uint8_t low_quality[kBlock] = {};
    bool any_box = false;
    for (int64_t m = starts[image]; m < starts[image + 1]; ++m) {
      const float* box = &boxes[5 * m];
      if (box[4] == 0) continue;
      if (!any_box) std::fill(matched, matched + kBlock, int32_t(m));
      any_box = true;
      greatest[m] = may_overlap(block, box) ? kernels.match_box(block, box, int32_t(m), best, matched) : 0;
      if (best_of_boxes == nullptr || greatest[m] != best_of_boxes[m]) continue;
      if (greatest[m] == 0) {
        std::fill(low_quality, low_quality + kBlock, 1);
      } else {
        kernels.mark_equal(block, box, greatest[m], low_quality);
      }
    }
    if (!any_box) std::fill(matched, matched + kBlock, -1);
    return write(first, image, best, matched, low_quality);
  }

  int64_t write(int64_t first, int64_t image, const float* best, const int32_t* matched,
                const uint8_t* low_quality) const {
    const int64_t at = image * anchor_count + first, count = std::min<int64_t>(kBlock, anchor_count - first);
    int64_t positive = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int32_t row = math::decide_match(matched[i], best[i], low_quality[i] != 0, thresholds);
      out_matched[at + i] = row;
      out_labels[at + i] = row >= 0 ? math::narrow_label(labels[row]) : row;
      positive += row >= 0;
    }
    return positive;
  }

  // f(block number, its anchors) on all threads.
  template <class F>
  void for_each_block(const F& f) const {
    torch::stable::parallel_for(0, blocks(), 8, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) f(b);
    });
  }

  int64_t run(bool allow_low_quality) const {
    std::vector<float> greatest(blocks() * box_count());
    std::vector<int64_t> positive(blocks() * batch);
    auto match_all = [&](const float* best_of_boxes) {
      for_each_block([&](int64_t b) {
        float* own = greatest.data() + b * box_count();
        std::optional<AnchorBlock> block;
        for (int64_t image = 0; image < batch; ++image) {
          if (best_of_boxes != nullptr && !reaches(own, best_of_boxes, image)) continue;
          if (!block)
            block =
                load_block(anchors, b * kBlock, int(std::min<int64_t>(kBlock, anchor_count - b * kBlock)));
          positive[b * batch + image] = match(*block, b * kBlock, image, own, best_of_boxes);
        }
      });
    };
    match_all(nullptr);
    if (allow_low_quality && anchor_count > 0) match_all(best_of(greatest).data());
    int64_t total = 0;
    for (int64_t count : positive) total += count;
    return total;
  }

  // Does a block hold a best anchor of any box of the image?
  bool reaches(const float* greatest, const float* best_of_boxes, int64_t image) const {
    for (int64_t m = starts[image]; m < starts[image + 1]; ++m) {
      if (greatest[m] == best_of_boxes[m] && boxes[5 * m + 4] != 0) return true;
    }
    return false;
  }

  std::vector<float> best_of(const std::vector<float>& greatest) const {
    std::vector<float> best(box_count());
    torch::stable::parallel_for(0, box_count(), 64, [&](int64_t begin, int64_t end) {
      for (int64_t b = 0; b < blocks(); ++b) {
        const float* own = greatest.data() + b * box_count();
        for (int64_t m = begin; m < end; ++m) best[m] = math::larger(own[m], best[m]);
      }
    });
    return best;
  }
};

std::tuple<Tensor, Tensor, Tensor> match_anchors(const Tensor& anchors, const Tensor& boxes,
                                                 const Tensor& labels, const Tensor& starts,
                                                 double high_threshold, double low_threshold,
                                                 bool allow_low_quality) {
  check_anchors(anchors, boxes, high_threshold, low_threshold);
  check_ground_truth("match_anchors", boxes, labels, starts);
  const int64_t batch = starts.numel() - 1, count = anchors.size(0);
  const Tensor candidates = torch::stable::contiguous(anchors);
  const Tensor packed = torch::stable::contiguous(boxes);
  const Tensor classes = torch::stable::contiguous(labels);
  const Tensor bounds = torch::stable::contiguous(starts);
  Tensor out_labels = new_empty(anchors, {batch, count}, ScalarType::Int);
  Tensor out_matched = new_empty(anchors, {batch, count}, ScalarType::Int);
  Tensor positive = new_empty(anchors, {}, ScalarType::Float);

  std::vector<float> columns;
  const float* rows = static_cast<const float*>(packed.const_data_ptr());
  for (const float* box = rows; box != rows + packed.numel(); box += 4) {
    const float area = math::box_area(box[0], box[1], box[2], box[3]);
    columns.insert(columns.end(), box, box + 4);
    columns.push_back(math::may_match(box, area) ? area : 0);
  }
  const Matching matching{static_cast<const float*>(candidates.const_data_ptr()),
                          count,
                          batch,
                          std::move(columns),
                          static_cast<const int64_t*>(classes.const_data_ptr()),
                          static_cast<const int64_t*>(bounds.const_data_ptr()),
                          {float(high_threshold), float(low_threshold)},
                          static_cast<int32_t*>(out_labels.mutable_data_ptr()),
                          static_cast<int32_t*>(out_matched.mutable_data_ptr()),
                          kernels(Dtype::kFloat32).match_anchors};
  check_starts("match_anchors", matching.starts, batch, packed.size(0));
  *static_cast<float*>(positive.mutable_data_ptr()) = float(matching.run(allow_low_quality));
  return {out_labels, out_matched, positive};
}

}  // namespace
}  // namespace fcos_fast

STABLE_TORCH_LIBRARY_IMPL(fcos_fast, CPU, m) {
  m.impl("match_anchors", TORCH_BOX(&fcos_fast::match_anchors));
}
