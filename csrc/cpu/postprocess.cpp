// First all blocks of locations of all levels and images, over the threads: a SIMD scan finds the few logits that are
// worth a score, and each block keeps its best. Then the images, over the threads: the best of the blocks, and of these,
// in falling order, decoding and suppression until there are enough.
#include "../math/postprocess.h"

#include <memory>

#include "../postprocess.h"
#include "greedy_nms.h"
#include "reduction.h"

namespace fcos_fast {
namespace {

constexpr int64_t kBlock = 2048;  // locations of a unit of work
constexpr int64_t kScan = 4096;   // logits of a call of the scan: their positions stay in the first cache

struct Unit {
  int64_t image, level, begin, end;  // locations of the level
};

std::vector<Unit> split(const PostprocessArguments& a) {
  std::vector<Unit> units;
  for (int64_t image = 0; image < a.batch; ++image) {
    for (size_t l = 0; l < a.levels.size(); ++l) {
      for (int64_t begin = 0; begin < a.levels[l].locations; begin += kBlock) {
        units.push_back({image, int64_t(l), begin, std::min(begin + kBlock, a.levels[l].locations)});
      }
    }
  }
  return units;
}

// The greatest of many keys; memory is a few times what is kept.
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

// Calls f(location, class, logit) for the logits of a unit that are not below the bound.
template <class T, class F>
void for_found(const PostprocessArguments& a, const Unit& unit, const F& f) {
  using Real = std::conditional_t<std::is_same_v<T, double>, double, float>;
  const math::FeatureMap& map = a.levels[unit.level].logits;
  const T* logits = static_cast<const T*>(map.data) + unit.image * map.image_stride;
  const FindLogits find = kernels(dtype_of(a.dtype)).find_logits;
  const double lowest = math::lowest_logit(a.rule);
  int32_t found[kScan + 1];
  auto scan = [&](const T* x, int64_t n, const auto& at) {
    for (int64_t begin = 0; begin < n; begin += kScan) {
      const int64_t count = find(x + begin, std::min(kScan, n - begin), lowest, found);
      for (int64_t k = 0; k < count; ++k) at(begin + found[k], Real(x[begin + found[k]]));
    }
  };
  const int64_t classes = a.rule.classes, locations = unit.end - unit.begin;
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
std::vector<math::key_t<Real>> best_of(const PostprocessArguments& a, const Unit& unit) {
  const math::PostprocessLevel& level = a.levels[unit.level];
  Greatest<math::key_t<Real>> best(a.topk);
  auto add = [&](int64_t location, int64_t c, Real logit) {
    const Real score = math::score_of_logit(logit, level, unit.image, location, a.rule);
    if (score < 0) return;
    const Real rank = math::rank_of(score, logit, a.rule);
    best.add(math::make_key(rank, uint32_t((level.first + location) * a.rule.classes + c)));
  };
  if (a.rule.multi_label) {
    for_found<T>(a, unit, add);
    return best.take();
  }
  struct Choice {
    int64_t c = -1;
    Real logit;
  } choices[kBlock];
  for_found<T>(a, unit, [&](int64_t location, int64_t c, Real logit) {  // classes come in rising order
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
struct Rows {  // of one image
  Real* boxes;
  Real* scores;
  int64_t* labels;
};

// The best of an image's units, per level or over all.
template <class Key>
std::vector<Key> merged(const PostprocessArguments& a, const std::vector<Unit>& units,
                        const std::vector<std::vector<Key>>& found, int64_t image) {
  std::vector<Key> all, group;
  for (size_t u = 0; u < units.size(); ++u) {
    if (units[u].image != image) continue;
    group.insert(group.end(), found[u].begin(), found[u].end());
    const bool more = u + 1 < units.size() && units[u + 1].image == image &&
                      (units[u + 1].level == units[u].level || !a.rule.topk_per_level);
    if (more) continue;
    keep_greatest(group, a.topk);
    all.insert(all.end(), group.begin(), group.end());
    group.clear();
  }
  return all;
}

// Where a key's index points to.
struct Place {
  const math::PostprocessLevel& level;
  int64_t location, c;  // the location among those of the level
};

Place place_of(const PostprocessArguments& a, int64_t index) {
  const int64_t location = index / a.rule.classes;
  size_t l = 0;
  while (location >= a.levels[l].first + a.levels[l].locations) ++l;
  return {a.levels[l], location - a.levels[l].first, index - location * a.rule.classes};
}

// The key by the score, of one by the classification.
template <class Real>
math::key_t<Real> key_by_score(const PostprocessArguments& a, int64_t image, math::key_t<Real> key) {
  const Place place = place_of(a, math::index_of(key));
  const math::FeatureMap& map = place.level.logits;
  const Real logit = math::read_element<Real>(
      map.data, dtype_of(a.dtype),
      image * map.image_stride + place.c * map.channel_stride + place.location * map.location_stride);
  return math::make_key(math::score_of_logit(logit, place.level, image, place.location, a.rule),
                        math::index_of(key));
}

template <class Real>
int64_t detect(const PostprocessArguments& a, int64_t image, std::vector<math::key_t<Real>> keys,
               const Rows<Real>& out) {
  const Real* size = static_cast<const Real*>(a.sizes.const_data_ptr()) + 2 * image;
  GreedyNms<Real> nms(a.result, a.iou_threshold);
  if (a.rule.topk_by_classification) {
    for (auto& key : keys) key = key_by_score<Real>(a, image, key);
  }
  int64_t count = 0;
  in_falling_order(keys, [&](auto key) {
    const Place place = place_of(a, math::index_of(key));
    Real* box = out.boxes + 4 * count;
    math::decode_box(place.level, image, place.location, a.rule, box);
    if (a.rule.clip_before_nms) math::clip_box(a.rule, size, box);
    const Real last_pixel = a.rule.inclusive_boxes ? 1 : 0;
    const Real suppressable[4] = {box[0], box[1], box[2] + last_pixel, box[3] + last_pixel};
    if (math::may_be_kept(a.rule, suppressable) &&
        nms.keep(suppressable, a.rule.class_agnostic ? 0 : place.c)) {
      if (!a.rule.clip_before_nms) math::clip_box(a.rule, size, box);
      out.scores[count] = math::score_of(key);
      out.labels[count++] = place.c;
    }
    return count < a.max_detections;
  });
  return count;
}

template <class T>
void run(const PostprocessArguments& a, PostprocessOutputs& out) {
  using Real = std::conditional_t<std::is_same_v<T, double>, double, float>;
  const auto units = split(a);
  std::vector<std::vector<math::key_t<Real>>> found(units.size());
  run_units(int64_t(units.size()), [&](int64_t u) { found[u] = best_of<T, Real>(a, units[u]); });

  const int64_t rows = a.max_detections;
  const Rows<Real> first{static_cast<Real*>(out.boxes.mutable_data_ptr()),
                         static_cast<Real*>(out.scores.mutable_data_ptr()),
                         static_cast<int64_t*>(out.labels.mutable_data_ptr())};
  auto* counts = static_cast<int64_t*>(out.counts.mutable_data_ptr());
  run_units(a.batch, [&](int64_t image) {
    const Rows<Real> own{first.boxes + 4 * image * rows, first.scores + image * rows,
                         first.labels + image * rows};
    const int64_t count = detect(a, image, merged(a, units, found, image), own);
    counts[image] = count;
    std::fill(own.boxes + 4 * count, own.boxes + 4 * rows, Real(0));
    std::fill(own.scores + count, own.scores + rows, Real(0));
    std::fill(own.labels + count, own.labels + rows, int64_t(-1));
  });
}

std::tuple<Tensor, Tensor, Tensor, Tensor> postprocess(
    std::vector<Tensor> cls_logits, std::vector<Tensor> box_regression, std::vector<Tensor> centerness,
    const Tensor& sizes, std::vector<double> geometry, int64_t score, double score_threshold,
    bool threshold_on_score, bool multi_label, int64_t topk, bool topk_per_level, bool topk_by_classification,
    double iou_threshold, bool class_agnostic, int64_t max_detections, bool inclusive_boxes,
    bool clip_before_nms, bool drop_empty) {
  const auto scannable = [](const math::FeatureMap& map, const Tensor&) {
    return map.location_stride == 1 || map.channel_stride == 1;
  };
  const auto a = read_postprocess(cls_logits, box_regression, centerness, sizes, geometry, score,
                                  score_threshold, threshold_on_score, multi_label, topk, topk_per_level,
                                  topk_by_classification, iou_threshold, class_agnostic, max_detections,
                                  inclusive_boxes, clip_before_nms, drop_empty, scannable);
  PostprocessOutputs out = new_outputs(cls_logits[0], a);
  switch (a.dtype) {
    case ScalarType::Float:
      run<float>(a, out);
      break;
    case ScalarType::BFloat16:
      run<BFloat16>(a, out);
      break;
    case ScalarType::Half:
      run<Half>(a, out);
      break;
    default:
      run<double>(a, out);
  }
  return {out.boxes, out.scores, out.labels, out.counts};
}

}  // namespace
}  // namespace fcos_fast

STABLE_TORCH_LIBRARY_IMPL(fcos_fast, CPU, m) { m.impl("postprocess", TORCH_BOX(&fcos_fast::postprocess)); }
