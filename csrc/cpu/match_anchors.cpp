// Compares blocks of anchors with the boxes of every image. The greatest IoU of each box is stored per block; it shows
// which blocks contain a box's best anchors, and only these few blocks are visited again for the low-quality matches.
#include "../math/match_anchors.h"

#include "../checks.h"
#include "kernels.h"

namespace fcos_fast {
namespace {

constexpr int kBlock = AnchorBlock::kSize;

// Anchors [first, first + count) as a block.
AnchorBlock load_block(const float* anchors, int64_t first, int count) {
  AnchorBlock block{};  // unused entries have zero area and overlap nothing
  block.bounds[0] = block.bounds[1] = INFINITY;
  block.bounds[2] = block.bounds[3] = -INFINITY;
  for (int i = 0; i < count; ++i) {
    const float* a = anchors + 4 * (first + i);
    block.x1[i] = a[0], block.y1[i] = a[1], block.x2[i] = a[2], block.y2[i] = a[3];
    block.area[i] = math::box_area(a[0], a[1], a[2], a[3]);
    for (int c = 0; c < 2; ++c) {
      block.bounds[c] = math::min(a[c], block.bounds[c]);
      block.bounds[c + 2] = math::max(a[c + 2], block.bounds[c + 2]);
    }
  }
  return block;
}

bool may_overlap(const AnchorBlock& block, const float* box) {
  return math::overlap(box[0], box[2], block.bounds[0], block.bounds[2]) > 0 &&
         math::overlap(box[1], box[3], block.bounds[1], block.bounds[3]) > 0;
}

struct Matching {
  const MatchAnchorsWork& work;
  std::vector<float> boxes;  // x1, y1, x2, y2, area; area is 0 if the box is skipped
  MatchKernels kernels;

  int64_t blocks() const { return (work.anchor_count + kBlock - 1) / kBlock; }
  int64_t box_count() const { return int64_t(boxes.size() / 5); }

  // Matches a block of anchors in an image. `greatest` is updated with the greatest IoU of each box in this block. If
  // best_of_boxes is not null, boxes claim the anchors that attain it. Returns the number of positive anchors.
  int64_t match(const AnchorBlock& block, int64_t first, int64_t image, float* greatest,
                const float* best_of_boxes) const {
    float best[kBlock] = {};
    int32_t matched[kBlock];
    int32_t claim[kBlock];
    std::fill(claim, claim + kBlock, -1);
    bool any_box = false;
    for (int64_t m = work.starts[image]; m < work.starts[image + 1]; ++m) {
      const float* box = &boxes[5 * m];
      if (box[4] == 0) continue;
      if (!any_box) std::fill(matched, matched + kBlock, int32_t(m));
      any_box = true;
      greatest[m] = may_overlap(block, box) ? kernels.match_box(block, box, int32_t(m), best, matched) : 0;
      if (best_of_boxes == nullptr || !claims_any(m, greatest, best_of_boxes)) continue;
      if (greatest[m] == 0) {
        std::fill(claim, claim + kBlock, int32_t(m));
      } else {
        kernels.claim_equal(block, box, int32_t(m), greatest[m], claim);
      }
    }
    if (!any_box) std::fill(matched, matched + kBlock, -1);
    return write(first, image, best, matched, claim);
  }

  int64_t write(int64_t first, int64_t image, const float* best, const int32_t* matched,
                const int32_t* claim) const {
    const int64_t at = image * work.anchor_count + first,
                  count = std::min<int64_t>(kBlock, work.anchor_count - first);
    int64_t positive = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int32_t row = math::decide_match(matched[i], best[i], claim[i], work.rule);
      work.out_matched[at + i] = row;
      work.out_labels[at + i] = row >= 0 ? math::narrow_label(work.labels[row]) : row;
      positive += row >= 0;
    }
    return positive;
  }

  // Calls f(block index) on all threads.
  template <class F>
  void for_each_block(const F& f) const {
    torch::stable::parallel_for(0, blocks(), 8, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b) f(b);
    });
  }

  int64_t run() const {
    std::vector<float> greatest(blocks() * box_count());
    std::vector<int64_t> positive(blocks() * work.batch);
    auto match_all = [&](const float* best_of_boxes) {
      for_each_block([&](int64_t b) {
        float* own = greatest.data() + b * box_count();
        std::optional<AnchorBlock> block;
        for (int64_t image = 0; image < work.batch; ++image) {
          if (best_of_boxes != nullptr && !reaches(own, best_of_boxes, image)) continue;
          if (!block)
            block = load_block(work.anchors, b * kBlock,
                               int(std::min<int64_t>(kBlock, work.anchor_count - b * kBlock)));
          positive[b * work.batch + image] = match(*block, b * kBlock, image, own, best_of_boxes);
        }
      });
    };
    match_all(nullptr);
    if (work.rule.low_quality != math::LowQuality::kNone && work.anchor_count > 0)
      match_all(best_of(greatest).data());
    int64_t total = 0;
    for (int64_t count : positive) total += count;
    return total;
  }

  // Does box m claim an anchor of the block?
  bool claims_any(int64_t m, const float* greatest, const float* best_of_boxes) const {
    return greatest[m] == best_of_boxes[m] && math::claims(greatest[m], work.rule);
  }

  // Does any box of the image claim an anchor of the block?
  bool reaches(const float* greatest, const float* best_of_boxes, int64_t image) const {
    for (int64_t m = work.starts[image]; m < work.starts[image + 1]; ++m) {
      if (claims_any(m, greatest, best_of_boxes) && boxes[5 * m + 4] != 0) return true;
    }
    return false;
  }

  std::vector<float> best_of(const std::vector<float>& greatest) const {
    std::vector<float> best(box_count());
    torch::stable::parallel_for(0, box_count(), 64, [&](int64_t begin, int64_t end) {
      for (int64_t b = 0; b < blocks(); ++b) {
        const float* own = greatest.data() + b * box_count();
        for (int64_t m = begin; m < end; ++m) best[m] = math::max(own[m], best[m]);
      }
    });
    return best;
  }
};

}  // namespace

void run_match_anchors(Cpu, const MatchAnchorsWork& work) {
  check_starts("match_anchors", work.starts, work.batch, work.box_count);
  std::vector<float> columns;
  for (const float* box = work.boxes; box != work.boxes + 4 * work.box_count; box += 4) {
    const float area = math::box_area(box[0], box[1], box[2], box[3]);
    columns.insert(columns.end(), box, box + 4);
    columns.push_back(math::may_match(box, area) ? area : 0);
  }
  *work.num_positive =
      float(Matching{work, std::move(columns), kernels(Dtype::kFloat32).match_anchors}.run());
}

}  // namespace fcos_fast
