// The transforms of Winograd's convolution F(4x4, 3x3) (Lavin and Gray, 2015), for the CPU in float32.
//
// A tile is a square of 4x4 locations of a map (B, C, H, W), of which the last ones may be outside. Tiles are numbered
// by image, row and column. `squares` (36, N, C) are the transformed squares of the tiles begin ... begin + N - 1.
// The channels of a location are contiguous, in maps and in squares; other strides are arbitrary.
//
// winograd_input(x, begin, squares)
//   writes the transforms of the tiles with a margin of one location, 6x6, padded by zeros
// winograd_gradient(grad, begin, squares)
//   writes the transforms of the tiles of a gradient of the output, 4x4, by the transpose of winograd_output
// winograd_output(squares, bias, begin, out)
//   writes the tiles, 4x4, that belong to the products `squares`, plus bias (C,) or None
// NaN and infinity spread at most to the outputs of the tiles that read them.
#pragma once

#include "../device.h"
#include "elementary.h"

namespace fcos_fast {

constexpr int64_t kWinogradTile = 4;
constexpr int64_t kWinogradProducts = 36;

// Tiles of a map and their squares, one of which is written.
template <class Map, class Squares>
struct WinogradWork {
  Map* map;
  int64_t height, width, channels;
  int64_t image_stride, row_stride, column_stride;
  Squares* squares;
  int64_t product_stride, tile_stride;
  int64_t begin, end;  // tiles
  const float* bias;   // or null

  int64_t down() const { return (height + kWinogradTile - 1) / kWinogradTile; }
  int64_t across() const { return (width + kWinogradTile - 1) / kWinogradTile; }
};
using WinogradRead = WinogradWork<const float, float>;
using WinogradWrite = WinogradWork<float, const float>;

void run_winograd_input(Cpu, const WinogradRead&);
void run_winograd_gradient(Cpu, const WinogradRead&);
void run_winograd_output(Cpu, const WinogradWrite&);

}  // namespace fcos_fast

namespace fcos_fast::math {

// The transforms of one row or column, for the interpolation points 0, 1, -1, 2, -2 and infinity.
struct WinogradInput {
  static constexpr int kFrom = 6, kTo = 6;
  template <class T>
  FCOS_HOST_DEVICE static void transform(const T* x, T* y) {
    const T even = fma(T(-4), x[2], x[4]), odd = fma(T(-4), x[1], x[3]);
    const T second = x[4] - x[2], first = T(2) * (x[3] - x[1]);
    y[0] = fma(T(4), x[0], fma(T(-5), x[2], x[4]));
    y[1] = even + odd;
    y[2] = even - odd;
    y[3] = second + first;
    y[4] = second - first;
    y[5] = fma(T(4), x[1], fma(T(-5), x[3], x[5]));
  }
};

struct WinogradOutput {
  static constexpr int kFrom = 6, kTo = 4;
  template <class T>
  FCOS_HOST_DEVICE static void transform(const T* m, T* y) {
    const T even1 = m[1] + m[2], odd1 = m[1] - m[2], even2 = m[3] + m[4], odd2 = m[3] - m[4];
    y[0] = m[0] + even1 + even2;
    y[1] = fma(T(2), odd2, odd1);
    y[2] = fma(T(4), even2, even1);
    y[3] = fma(T(8), odd2, odd1) + m[5];
  }
};

struct WinogradGradient {
  static constexpr int kFrom = 4, kTo = 6;
  template <class T>
  FCOS_HOST_DEVICE static void transform(const T* g, T* y) {
    const T even1 = g[0] + g[2], odd1 = g[1] + g[3];
    const T even2 = fma(T(4), g[2], g[0]), odd2 = fma(T(8), g[3], T(2) * g[1]);
    y[0] = g[0];
    y[1] = even1 + odd1;
    y[2] = even1 - odd1;
    y[3] = even2 + odd2;
    y[4] = even2 - odd2;
    y[5] = g[3];
  }
};

}  // namespace fcos_fast::math
