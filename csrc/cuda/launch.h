// What every CUDA operator needs: the stream, the launch shape, types, vector loads, a sum in a fixed order.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>
#include <torch/headeronly/util/shim_utils.h>

#include <type_traits>

#include "../tensor.h"

namespace fcos_fast {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int kThreads = 256;
// Blocks of a grid-stride loop. Fixed, not the size of the device, so that sums have the same bits on every
// run.
constexpr int64_t kMaxBlocks = 1056;

// Makes the tensor's device current and names its current stream.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const Tensor& t) : guard_(t.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(t.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

inline int blocks_for(int64_t items) {
  return int(std::min<int64_t>((items + kThreads - 1) / kThreads, kMaxBlocks));
}

// Computation type: float32 for 16-bit elements.
template <class T>
using compute_t = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Calls f with a value of the element type.
template <class F>
void dispatch_floating(const char* op, ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Float:
      return f(float());
    case ScalarType::BFloat16:
      return f(BFloat16());
    case ScalarType::Half:
      return f(Half());
    case ScalarType::Double:
      return f(double());
    default:
      STD_TORCH_CHECK(false, "fcos_fast::", op, ": expected float32, float64, bfloat16 or float16, got ",
                      torch::headeronly::toString(dtype));
  }
}

// N elements in one memory access; the pointer must be aligned to all of them.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T v[N];
};

// N elements as one access; fewer at the end of the tensor, one by one.
template <int N, class T>
__device__ __forceinline__ Pack<T, N> load_pack(const T* p, int count) {
  if (count == N) return *reinterpret_cast<const Pack<T, N>*>(p);
  Pack<T, N> pack;
#pragma unroll
  for (int i = 0; i < N; ++i) pack.v[i] = i < count ? p[i] : T(0.0f);
  return pack;
}
template <int N, class T>
__device__ __forceinline__ void store_pack(T* p, const Pack<T, N>& pack, int count) {
  if (count == N) {
    *reinterpret_cast<Pack<T, N>*>(p) = pack;
  } else {
#pragma unroll
    for (int i = 0; i < N; ++i) {
      if (i < count) p[i] = pack.v[i];
    }
  }
}

// `t` itself where accesses of 16 bytes may begin at its first element (a slice need not), else a copy.
inline Tensor aligned(const Tensor& t) {
  return reinterpret_cast<uintptr_t>(t.const_data_ptr()) % 16 == 0 ? t : torch::stable::clone(t);
}

// Sum over the block, valid in thread 0. The order is fixed.
__device__ __forceinline__ double block_sum(double x) {
  __shared__ double warp_sums[32];
  for (int offset = 16; offset > 0; offset /= 2) x += __shfl_down_sync(0xffffffffu, x, offset);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  __syncthreads();  // a previous sum may still be read
  if (lane == 0) warp_sums[warp] = x;
  __syncthreads();
  const int warps = (blockDim.x + 31) / 32;
  x = threadIdx.x < warps ? warp_sums[threadIdx.x] : 0.0;
  if (warp == 0) {
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_down_sync(0xffffffffu, x, offset);
  }
  return x;
}

// Sum of the values of the threads before this one; *total, of all of the block. Every thread must call it.
__device__ __forceinline__ int64_t block_prefix_sum(int64_t x, int64_t* total) {
  __shared__ int64_t warp_sums[32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int64_t inclusive = x;
  for (int offset = 1; offset < 32; offset *= 2) {
    const int64_t below = __shfl_up_sync(0xffffffffu, inclusive, offset);
    if (lane >= offset) inclusive += below;
  }
  __syncthreads();  // previous sums may still be read
  if (lane == 31) warp_sums[warp] = inclusive;
  __syncthreads();
  int64_t before = 0;
  *total = 0;
  for (int w = 0; w < int(blockDim.x) / 32; ++w) {
    if (w < warp) before += warp_sums[w];
    *total += warp_sums[w];
  }
  return before + inclusive - x;
}

// out[k] = sum of partial[0..n)[k], one block per k.
template <class Out>
__global__ void add_partial_sums(const double* partial, int64_t n, int columns, Out* out) {
  double total = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) total += partial[i * columns + blockIdx.x];
  total = block_sum(total);
  if (threadIdx.x == 0) out[blockIdx.x] = Out(total);
}

// The gradient that flows into a loss: a scalar, read on the device, or one number per element of the loss.
struct Upstream {
  Tensor tensor;
  const void* scale = nullptr;  // of the computation type
  const void* elements = nullptr;
};

template <class Arrange>
Upstream upstream_of(const Tensor& grad, ScalarType dtype, const Arrange& arrange) {
  Upstream upstream;
  if (grad.dim() == 0) {
    upstream.tensor = converted(grad, sum_type(dtype));
    upstream.scale = upstream.tensor.const_data_ptr();
  } else {
    upstream.tensor = arrange(converted(grad, dtype));
    upstream.elements = upstream.tensor.const_data_ptr();
  }
  return upstream;
}

}  // namespace fcos_fast
