// Phase 1, in parallel over blocks of locations of all levels and images: a SIMD scan finds the few logits above the
// bound, and each block keeps its top candidates. Phase 2, in parallel over images: merge the blocks' candidates, then
// decode and suppress them in descending order until there are enough.
#include "../math/postprocess.h"

#include <memory>

#include "greedy_nms.h"
#include "reduction.h"

namespace fcos_fast {
namespace {

constexpr int64_t kBlock = 2048;  // locations per unit of work
constexpr int64_t kScan = 4096;   // logits per call of the scan; their indices fit into the L1 cache

struct Unit {
  int64_t image, level, begin, end;  // locations of the level
};

std::vector<Unit> split(const PostprocessWork& work) {
  std::vector<Unit> units;
  for (int64_t image = 0; image < work.batch; ++image) {
    for (size_t l = 0; l < work.levels.size(); ++l) {
      for (int64_t begin = 0; begin < work.levels[l].locations; begin += kBlock) {
        units.push_back({image, int64_t(l), begin, std::min(begin + kBlock, work.levels[l].locations)});
      }
    }
  }
  return units;
}

// Collects the `count` greatest keys in at most 4 * count memory.
template <class Key>
class Greatest {
 public:
  explicit Greatest(int64_t count) : count_(count) {}
  void add(Key key) {
    if (key <= floor_) return;
    keys_.push_back(key);
    if (int64_t(keys_.size()) >= 4 * count_) {
      keep_greatest(keys_, count_);
      floor_ = *std::min_element(keys_.begin(), keys_.end());
    }
  }
  std::vector<Key> take() {
    keep_greatest(keys_, count_);
    return std::move(keys_);
  }

 private:
  int64_t count_;
  Key floor_ = 0;
  std::vector<Key> keys_;
};

// Calls f(location, class, logit) for all logits of a unit that are not below the bound.
template <class T, class F>
void for_found(const PostprocessWork& work, const Unit& unit, const F& f) {
  using Real = compute_t<T>;
  const math::FeatureMap& map = work.levels[unit.level].logits;
  const T* logits = static_cast<const T*>(map.data) + unit.image * map.image_stride;
  const FindLogits find = kernels(work.rule.logits_dtype).find_logits;
  const double lowest = math::lowest_logit(work.rule);
  int32_t found[kScan + 1];
  auto scan = [&](const T* x, int64_t n, const auto& at) {
    for (int64_t begin = 0; begin < n; begin += kScan) {
      const int64_t count = find(x + begin, std::min(kScan, n - begin), lowest, found);
      for (int64_t k = 0; k < count; ++k) at(begin + found[k], Real(x[begin + found[k]]));
    }
  };
  const int64_t classes = work.rule.classes, locations = unit.end - unit.begin;
  if (map.location_stride == 1) {
    for (int64_t c = 0; c < classes; ++c) {
      scan(logits + c * map.channel_stride + unit.begin, locations,
           [&](int64_t i, Real logit) { f(unit.begin + i, c, logit); });
    }
  } else if (map.location_stride == classes) {
    scan(logits + unit.begin * classes, locations * classes, [&](int64_t i, Real logit) {
      const int64_t location = i / classes;
      f(unit.begin + location, i - location * classes, logit);
    });
  } else {
    for (int64_t location = unit.begin; location < unit.end; ++location) {
      scan(logits + location * map.location_stride, classes,
           [&](int64_t c, Real logit) { f(location, c, logit); });
    }
  }
}

template <class T, class Real>
std::vector<math::key_t<Real>> best_of(const PostprocessWork& work, const Unit& unit) {
  const math::PostprocessLevel<double>& level = work.levels[unit.level];
  Greatest<math::key_t<Real>> best(work.rule.topk);
  auto add = [&](int64_t location, int64_t c, Real logit) {
    const Real score = math::score_of_logit(logit, level, unit.image, location, work.rule);
    if (score < 0) return;
    const Real rank = math::rank_of(score, logit, work.rule);
    best.add(math::make_key(rank, uint32_t((level.first + location) * work.rule.classes + c)));
  };
  if (work.rule.multi_label) {
    for_found<T>(work, unit, add);
    return best.take();
  }
  struct Choice {
    int64_t c = -1;
    Real logit;
  } choices[kBlock];
  for_found<T>(work, unit,
               [&](int64_t location, int64_t c, Real logit) {  // classes arrive in ascending order
                 Choice& choice = choices[location - unit.begin];
                 if (choice.c < 0 || logit > choice.logit) choice = {c, logit};
               });
  for (int64_t location = unit.begin; location < unit.end; ++location) {
    const Choice& choice = choices[location - unit.begin];
    if (choice.c >= 0) add(location, choice.c, choice.logit);
  }
  return best.take();
}

template <class Real>
struct Rows {  // results of one image
  Real* boxes;
  Real* scores;
  int64_t* labels;
};

// Merges the candidates of an image's units: the top-k per level, or over all levels.
template <class Key>
std::vector<Key> merged(const PostprocessWork& work, const std::vector<Unit>& units,
                        const std::vector<std::vector<Key>>& found, int64_t image) {
  std::vector<Key> all, group;
  for (size_t u = 0; u < units.size(); ++u) {
    if (units[u].image != image) continue;
    group.insert(group.end(), found[u].begin(), found[u].end());
    const bool more = u + 1 < units.size() && units[u + 1].image == image &&
                      (units[u + 1].level == units[u].level || !work.rule.topk_per_level);
    if (more) continue;
    keep_greatest(group, work.rule.topk);
    all.insert(all.end(), group.begin(), group.end());
    group.clear();
  }
  return all;
}

template <class Real>
int64_t detect(const PostprocessWork& work, int64_t image, std::vector<math::key_t<Real>> keys,
               const Rows<Real>& out) {
  const Real* size = static_cast<const Real*>(work.sizes) + 2 * image;
  const auto* levels = work.levels.data();
  const int64_t num_levels = int64_t(work.levels.size());
  GreedyNms<Real> nms(std::is_same_v<Real, double> ? Dtype::kFloat64 : Dtype::kFloat32,
                      work.rule.iou_threshold);
  if (work.rule.topk_by_classification) {
    for (auto& key : keys) key = math::key_by_score(levels, num_levels, work.rule, image, key);
  }
  int64_t count = 0;
  in_descending_order(keys, [&](auto key) {
    const math::Place place = math::place_of(levels, num_levels, work.rule, math::index_of(key));
    Real* box = out.boxes + 4 * count;
    math::decode_box(levels[place.level], image, place.location, work.rule, box);
    if (work.rule.clip_before_nms) math::clip_box(work.rule, size, box);
    const Real last_pixel = work.rule.inclusive_boxes ? 1 : 0;
    const Real suppressable[4] = {box[0], box[1], box[2] + last_pixel, box[3] + last_pixel};
    if (math::may_be_kept(work.rule, suppressable) &&
        nms.keep(suppressable, work.rule.class_agnostic ? 0 : place.c)) {
      if (!work.rule.clip_before_nms) math::clip_box(work.rule, size, box);
      out.scores[count] = math::score_of(key);
      out.labels[count++] = place.c;
    }
    return count < work.rule.max_detections;
  });
  return count;
}

template <class T>
void run(const PostprocessWork& work) {
  using Real = compute_t<T>;
  const auto units = split(work);
  std::vector<std::vector<math::key_t<Real>>> found(units.size());
  run_units(int64_t(units.size()), [&](int64_t u) { found[u] = best_of<T, Real>(work, units[u]); });

  const int64_t rows = work.rule.max_detections;
  const Rows<Real> first{static_cast<Real*>(work.boxes), static_cast<Real*>(work.scores), work.labels};
  run_units(work.batch, [&](int64_t image) {
    const Rows<Real> own{first.boxes + 4 * image * rows, first.scores + image * rows,
                         first.labels + image * rows};
    const int64_t count = detect(work, image, merged(work, units, found, image), own);
    work.counts[image] = count;
    std::fill(own.boxes + 4 * count, own.boxes + 4 * rows, Real(0));
    std::fill(own.scores + count, own.scores + rows, Real(0));
    std::fill(own.labels + count, own.labels + rows, int64_t(-1));
  });
}

}  // namespace

void run_postprocess(Cpu, const PostprocessWork& work) {
  dispatch(work.rule.logits_dtype, [&](auto element) { run<decltype(element)>(work); });
}

}  // namespace fcos_fast
