// Transforms adjacent channels of a tile at once.
#pragma once

#include "../math/winograd.h"
#include "vec.h"

namespace fcos_fast::FCOS_SIMD_NAMESPACE {

// The part of a square of a tile that is inside of the map.
struct WinogradPlace {
  int64_t offset;  // of the first element of the square, which may be outside
  int64_t top, bottom, left, right;

  FCOS_INLINE bool has(int64_t row, int64_t column) const {
    return top <= row && row < bottom && left <= column && column < right;
  }
};

// The square of a tile: `margin` more locations on each side.
template <class Work>
FCOS_INLINE WinogradPlace winograd_place(const Work& work, int64_t tile, int64_t margin) {
  const int64_t across = work.across(), rows = tile / across, image = rows / work.down();
  const int64_t y = (rows - image * work.down()) * kWinogradTile - margin;
  const int64_t x = (tile - rows * across) * kWinogradTile - margin;
  return {image * work.image_stride + y * work.row_stride + x * work.column_stride, y < 0 ? -y : 0,
          work.height - y, x < 0 ? -x : 0, work.width - x};
}

// Transforms the columns, then the rows, of a square in `at(row, column)`; passes the result to `put`.
template <class V, class Transform, class At, class Put>
FCOS_INLINE void winograd_square(const At& at, const Put& put) {
  constexpr int kFrom = Transform::kFrom, kTo = Transform::kTo;
  V half[kTo][kFrom];
#pragma GCC unroll 6
  for (int column = 0; column < kFrom; ++column) {
    V from[kFrom], to[kTo];
#pragma GCC unroll 6
    for (int row = 0; row < kFrom; ++row) from[row] = at(row, column);
    Transform::transform(from, to);
#pragma GCC unroll 6
    for (int row = 0; row < kTo; ++row) half[row][column] = to[row];
  }
#pragma GCC unroll 6
  for (int row = 0; row < kTo; ++row) {
    V to[kTo];
    Transform::transform(half[row], to);
#pragma GCC unroll 6
    for (int column = 0; column < kTo; ++column) put(row, column, to[column]);
  }
}

// Calls f(first channel, lanes, V()) for groups of channels that fill a cache line (64 bytes), then for the rest.
template <class F>
FCOS_INLINE void for_channels(int64_t channels, const F& f) {
  using Line = std::conditional_t<kFloats == 8, Twice<Vec>, Vec>;
  int64_t c = 0;
  for (; c + Line::kLanes <= channels; c += Line::kLanes) f(c, Line::kLanes, Line());
  for (; c < channels; c += kFloats) f(c, int(std::min<int64_t>(kFloats, channels - c)), Vec());
}

template <class Transform, bool kInside>
FCOS_INLINE void winograd_read_tile(const WinogradRead& work, const WinogradPlace& place, float* squares) {
  for_channels(work.channels, [&](int64_t c, int lanes, auto v) FCOS_LAMBDA {
    using V = decltype(v);
    winograd_square<V, Transform>(
        [&](int row, int column) FCOS_LAMBDA {
          if (!kInside && !place.has(row, column)) return V(0.0f);
          return Lanes<V>::load(
              work.map + place.offset + row * work.row_stride + column * work.column_stride + c, lanes);
        },
        [&](int row, int column, V y) FCOS_LAMBDA {
          Lanes<V>::store(squares + (row * 6 + column) * work.product_stride + c, y, lanes);
        });
  });
}

// Tiles of [begin, end), which are in the range of the work.
template <class Transform>
void winograd_read(const WinogradRead& work, int64_t begin, int64_t end) {
  constexpr int kSide = Transform::kFrom;
  for (int64_t tile = begin; tile < end; ++tile) {
    const WinogradPlace place = winograd_place(work, tile, (kSide - kWinogradTile) / 2);
    float* squares = work.squares + (tile - work.begin) * work.tile_stride;
    if (place.has(0, 0) && place.has(kSide - 1, kSide - 1)) {
      winograd_read_tile<Transform, true>(work, place, squares);
    } else {
      winograd_read_tile<Transform, false>(work, place, squares);
    }
  }
}

inline void winograd_write(const WinogradWrite& work, int64_t begin, int64_t end) {
  for (int64_t tile = begin; tile < end; ++tile) {
    const WinogradPlace place = winograd_place(work, tile, 0);
    const float* squares = work.squares + (tile - work.begin) * work.tile_stride;
    for_channels(work.channels, [&](int64_t c, int lanes, auto v) FCOS_LAMBDA {
      using V = decltype(v);
      const V bias = work.bias == nullptr ? V(0.0f) : Lanes<V>::load(work.bias + c, lanes);
      winograd_square<V, math::WinogradOutput>(
          [&](int row, int column) FCOS_LAMBDA {
            return Lanes<V>::load(squares + (row * 6 + column) * work.product_stride + c, lanes);
          },
          [&](int row, int column, V y) FCOS_LAMBDA {
            if (!place.has(row, column)) return;
            Lanes<V>::store(work.map + place.offset + row * work.row_stride + column * work.column_stride + c,
                            y + bias, lanes);
          });
    });
  }
}

}  // namespace fcos_fast::FCOS_SIMD_NAMESPACE
