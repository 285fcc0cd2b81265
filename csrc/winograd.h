// The transforms of Winograd's convolution, on the CPU only; see math/winograd.h.
#pragma once

#include "checks.h"
#include "math/winograd.h"

namespace fcos_fast {

inline void check_winograd(const char* op, const char* name, const Tensor& t, int64_t dims,
                           int64_t channel_dim) {
  STD_TORCH_CHECK(t.dim() == dims && t.scalar_type() == ScalarType::Float && t.is_cpu() &&
                      (t.size(channel_dim) == 1 || t.stride(channel_dim) == 1),
                  "fcos_fast::", op, ": expected float32 ", name, " on the CPU with ", dims,
                  " dimensions and contiguous channels");
}

// Without the pointers.
template <class Work>
Work winograd_work(const char* op, const Tensor& map, int64_t begin, const Tensor& squares) {
  check_winograd(op, "map", map, 4, 1);
  check_winograd(op, "squares", squares, 3, 2);
  STD_TORCH_CHECK(squares.size(0) == kWinogradProducts && squares.size(2) == map.size(1), "fcos_fast::", op,
                  ": expected squares (36, N, C) for the channels of the map");
  Work work{};
  work.height = map.size(2), work.width = map.size(3), work.channels = map.size(1);
  work.image_stride = map.stride(0), work.row_stride = map.stride(2), work.column_stride = map.stride(3);
  work.product_stride = squares.stride(0), work.tile_stride = squares.stride(1);
  check_range(op, "begin", begin, 0, map.size(0) * work.down() * work.across() - squares.size(1));
  work.begin = begin, work.end = begin + squares.size(1);
  return work;
}

template <void (*kRun)(Cpu, const WinogradRead&)>
void winograd_read(const char* op, const Tensor& map, int64_t begin, Tensor& squares) {
  WinogradRead work = winograd_work<WinogradRead>(op, map, begin, squares);
  work.map = const_data<float>(map);
  work.squares = mutable_data<float>(squares);
  kRun(Cpu(), work);
}

inline void winograd_input(const Tensor& x, int64_t begin, Tensor squares) {
  winograd_read<run_winograd_input>("winograd_input", x, begin, squares);
}

inline void winograd_gradient(const Tensor& grad, int64_t begin, Tensor squares) {
  winograd_read<run_winograd_gradient>("winograd_gradient", grad, begin, squares);
}

inline void winograd_output(const Tensor& squares, std::optional<Tensor> bias, int64_t begin, Tensor out) {
  WinogradWrite work = winograd_work<WinogradWrite>("winograd_output", out, begin, squares);
  work.map = mutable_data<float>(out);
  work.squares = const_data<float>(squares);
  if (bias.has_value()) {
    check_winograd("winograd_output", "bias", *bias, 1, 0);
    check_range("winograd_output", "size of bias", bias->size(0), work.channels, work.channels);
    work.bias = const_data<float>(*bias);
  }
  run_winograd_output(Cpu(), work);
}

}  // namespace fcos_fast
