// Reads the maps of detection_loss, level by level, from the arguments of its schema.
#pragma once

#include <array>
#include <limits>

#include "box_loss.h"
#include "focal_layout.h"
#include "math/detection_loss.h"

namespace fcos_fast {

// A map (B, K, H, W) whose H and W can be walked as one.
struct MapLayout {
  int64_t image, channel, location;  // strides in elements
};

inline bool is_map(const Tensor& t) {
  const auto sizes = sizes_of(t), strides = strides_of(t);
  const int64_t k = sizes[1], locations = sizes[2] * sizes[3];
  auto lies = [&](std::array<int64_t, 4> expected) {
    for (int d = 0; d < 4; ++d) {
      if (sizes[d] != 1 && strides[d] != expected[d]) return false;
    }
    return true;
  };
  return t.numel() == 0 || lies({k * locations, locations, sizes[3], 1}) ||
         lies({k * locations, 1, sizes[3] * k, k});
}

// The map itself where its memory is dense, NCHW or channels-last; else a copy that is.
inline Tensor as_map(const Tensor& t) {
  if (is_map(t)) return t;
  Tensor copy = torch::stable::empty_like(t);
  torch::stable::copy_(copy, t);
  return is_map(copy) ? copy : torch::stable::contiguous(copy);
}

inline bool is_channels_last(const Tensor& map) {
  if (map.size(1) == 1) return false;  // both at once
  return map.stride(1) == 1 && map.size(2) * map.size(3) > 1;
}

inline MapLayout layout_of(const Tensor& map) {
  const int64_t k = map.size(1), locations = map.size(2) * map.size(3);
  return is_channels_last(map) ? MapLayout{k * locations, 1, k} : MapLayout{k * locations, locations, 1};
}

// Of one image.
inline FocalLayout focal_layout_of(const Tensor& map) {
  const int64_t locations = map.size(2) * map.size(3);
  if (is_channels_last(map) || locations == 1) return {locations, map.size(1), 1};
  return {1, map.size(1), locations};
}

struct DetectionMaps {
  std::vector<Tensor> given[kLossParts];
  std::vector<Tensor> maps[kLossParts];   // the given ones, or copies
  std::vector<Tensor> grads[kLossParts];  // in the order of maps
  std::vector<int64_t> first;             // location of each level, and behind the last
  int64_t batch, classes;

  size_t levels() const { return maps[0].size(); }
  int64_t locations() const { return first.back(); }
  int64_t locations(size_t level) const { return first[level + 1] - first[level]; }

  // The gradients in the memory order of the given maps.
  std::vector<Tensor> results(int part) const {
    std::vector<Tensor> results;
    for (size_t l = 0; l < grads[part].size(); ++l) {
      results.push_back(in_format_of(grads[part][l], given[part][l]));
    }
    return results;
  }
};

inline DetectionMaps read_maps(const std::vector<Tensor>& cls_logits,
                               const std::vector<Tensor>& box_regression,
                               const std::vector<Tensor>& centerness, bool with_grad) {
  const char* op = "fcos_fast::detection_loss: ";
  const size_t levels = cls_logits.size();
  STD_TORCH_CHECK(levels > 0 && box_regression.size() == levels && centerness.size() == levels, op,
                  "expected maps of the same levels, at least one");
  STD_TORCH_CHECK(cls_logits[0].dim() == 4, op, "expected cls_logits (B, C, H, W)");
  check_same_device("detection_loss", cls_logits[0], cls_logits, box_regression, centerness);
  DetectionMaps m;
  m.batch = cls_logits[0].size(0);
  m.classes = cls_logits[0].size(1);
  m.first.push_back(0);
  const std::vector<Tensor>* lists[kLossParts] = {&cls_logits, &box_regression, &centerness};
  const int64_t channels[kLossParts] = {m.classes, 4, 1};
  for (int part = 0; part < kLossParts; ++part) {
    for (size_t l = 0; l < levels; ++l) {
      const Tensor& map = (*lists[part])[l];
      const Tensor& logits = cls_logits[l];
      check_floating("detection_loss", "a map", map);
      STD_TORCH_CHECK(map.dim() == 4 && map.size(0) == m.batch && map.size(1) == channels[part] &&
                          map.size(2) == logits.size(2) && map.size(3) == logits.size(3),
                      op, "maps of level ", l, " do not fit together");
      STD_TORCH_CHECK(map.scalar_type() == (*lists[part])[0].scalar_type(), op,
                      "the levels of a map differ in type");
      m.given[part].push_back(map);
      m.maps[part].push_back(as_map(map));
      if (with_grad) m.grads[part].push_back(torch::stable::empty_like(m.maps[part].back()));
    }
  }
  for (const Tensor& logits : cls_logits) m.first.push_back(m.first.back() + logits.size(2) * logits.size(3));
  return m;
}

struct DetectionTargets {
  Tensor labels, ltrb, quality, totals;
  std::optional<Tensor> normalizers;
};

inline DetectionTargets read_targets(const Tensor& labels, const Tensor& ltrb, const Tensor& quality,
                                     const Tensor& totals, const std::optional<Tensor>& normalizers,
                                     const DetectionMaps& m) {
  check_same_device("detection_loss", m.given[0][0], labels, ltrb, quality, totals, normalizers);
  const int64_t p = m.locations();
  auto is = [](const Tensor& t, ScalarType dtype, const std::vector<int64_t>& sizes) {
    return t.scalar_type() == dtype && sizes_of(t) == sizes;
  };
  STD_TORCH_CHECK(is(labels, ScalarType::Int, {m.batch, p}) && is(ltrb, ScalarType::Float, {m.batch, p, 4}) &&
                      is(quality, ScalarType::Float, {m.batch, p}) && is(totals, ScalarType::Float, {2}) &&
                      (!normalizers.has_value() || is(*normalizers, ScalarType::Float, {3, m.batch})),
                  "fcos_fast::detection_loss: expected labels (B, P) int32, ltrb (B, P, 4), quality (B, P), "
                  "totals (2,) and normalizers (3, B) float32");
  using torch::stable::contiguous;
  return {contiguous(labels), contiguous(ltrb), contiguous(quality), contiguous(totals),
          normalizers.has_value() ? std::optional<Tensor>(contiguous(*normalizers)) : std::nullopt};
}

struct DetectionLossParameters {
  FocalParameters focal;
  BoxLossParameters box;
  bool weighted, iou_quality;
};

// From the numbers of the schema, in its order.
inline DetectionLossParameters read_parameters(const std::vector<double>& units, size_t levels, double alpha,
                                               double gamma, int64_t box_kind, double smooth, double eps,
                                               bool weighted, bool iou_quality) {
  STD_TORCH_CHECK(units.size() == levels, "fcos_fast::detection_loss: expected one unit per level");
  constexpr double kLeast = std::numeric_limits<float>::min(), kMost = std::numeric_limits<float>::max();
  for (const double unit : units) check_number("detection_loss", "unit", unit, kLeast, kMost);
  return {focal(alpha, gamma), box_loss_parameters(box_kind, true, smooth, eps), weighted, iou_quality};
}

inline void check_upstream(const Tensor& upstream, const Tensor& like) {
  check_same_device("detection_loss", like, upstream);
  check_floating("detection_loss", "upstream", upstream);
  STD_TORCH_CHECK(upstream.dim() == 1 && upstream.size(0) == kLossParts,
                  "fcos_fast::detection_loss: expected upstream (3,)");
}

// Of detection_loss_rescale_, which writes into them. A part that no gradient flows into may be left out.
inline void check_rescaled(const std::vector<Tensor>* const (&parts)[kLossParts], const Tensor& upstream) {
  for (const auto* part : parts) {
    for (const Tensor& grad : *part) {
      check_upstream(upstream, grad);
      check_floating("detection_loss_rescale_", "a gradient", grad);
      STD_TORCH_CHECK(is_dense(grad), "fcos_fast::detection_loss_rescale_: a gradient has gaps or overlaps");
    }
  }
}

}  // namespace fcos_fast
