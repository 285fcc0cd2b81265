// Memory formats of tensors, for the operators that read and write them without a copy.
#pragma once

#include "tensor.h"

namespace fcos_fast {

// Do the elements fill a contiguous range of memory without gaps or overlaps, in any order?
inline bool is_dense(const Tensor& t) {
  if (t.numel() == 0) return true;
  std::vector<std::pair<int64_t, int64_t>> dims;  // stride, size
  for (int64_t d = 0; d < t.dim(); ++d) {
    if (t.size(d) != 1) dims.emplace_back(t.stride(d), t.size(d));
  }
  std::sort(dims.begin(), dims.end());
  int64_t expected = 1;
  for (const auto& [stride, size] : dims) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

// `t` with the strides of empty_like(like), which has the same shape and dtype: those of `like` if it is dense.
inline Tensor in_order_of(const Tensor& t, const Tensor& like) {
  if (strides_of(t) == strides_of(like)) return t;
  Tensor ordered = torch::stable::empty_like(like);
  torch::stable::copy_(ordered, t);
  return ordered;
}

// Dense memory [outer][channels][inner]; the dimensions other than the channels are in order.
struct ChannelFormat {
  int64_t outer, channels, inner;
};

inline std::optional<ChannelFormat> channel_format(const Tensor& t, int64_t channel_dim) {
  const int64_t channels = t.size(channel_dim);
  if (t.numel() == 0) {
    int64_t others = 1;
    for (int64_t d = 0; d < t.dim(); ++d) others *= d == channel_dim ? 1 : t.size(d);
    return ChannelFormat{others, channels, 1};
  }
  const int64_t inner = channels == 1 ? 1 : t.stride(channel_dim);
  int64_t expected = 1;
  for (int64_t d = t.dim() - 1; d >= 0; --d) {
    if (d == channel_dim || t.size(d) == 1) continue;
    if (expected == inner) expected *= channels;  // the channels are between inner and outer dimensions
    if (t.stride(d) != expected) return std::nullopt;
    expected *= t.size(d);
  }
  if (expected != inner && expected != t.numel()) return std::nullopt;
  return ChannelFormat{t.numel() / channels / inner, channels, inner};
}

// Strides of a map (B, K, H, W) whose H and W can be flattened into one dimension.
struct MapStrides {
  int64_t image, channel, location;
};

inline std::optional<MapStrides> map_strides(const Tensor& map) {
  const int64_t height = map.size(2), width = map.size(3);
  if (height > 1 && width > 1 && map.stride(2) != width * map.stride(3)) return std::nullopt;
  const int64_t location = width > 1 ? map.stride(3) : height > 1 ? map.stride(2) : 1;
  return MapStrides{map.stride(0), map.stride(1), location};
}

// Is it dense NCHW or channels-last?
inline bool is_dense_map(const Tensor& map) {
  const auto format = channel_format(map, 1);
  return format.has_value() && (format->inner == 1 || format->inner == map.size(2) * map.size(3));
}

// The map, or a dense copy of it.
inline Tensor dense_map(const Tensor& map) {
  if (is_dense_map(map)) return map;
  Tensor copy = torch::stable::empty_like(map);
  torch::stable::copy_(copy, map);
  return is_dense_map(copy) ? copy : torch::stable::contiguous(copy);
}

// The strides of a dense map. Dimensions of size 1, whose stride is arbitrary, get the regular one.
inline MapStrides dense_map_strides(const Tensor& map) {
  const int64_t channels = map.size(1), locations = map.size(2) * map.size(3);
  const bool channels_last = channel_format(map, 1)->inner == 1;
  if (channels_last) return {channels * locations, 1, channels};
  return {channels * locations, locations, 1};
}

}  // namespace fcos_fast
