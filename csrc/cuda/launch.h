// Shared by all kernels: launch shapes, vector loads, sums in a fixed order. Does not depend on torch headers.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "../device.h"
#include "../dtype.h"

namespace fcos_fast {

constexpr int kThreads = 256;
// Blocks of a grid-stride loop. Fixed, independent of the device, so that sums are bitwise reproducible.
constexpr int64_t kMaxBlocks = 1056;

inline int blocks_for(int64_t items) {
  return int(std::min<int64_t>((items + kThreads - 1) / kThreads, kMaxBlocks));
}

inline cudaStream_t stream_of(const Cuda& device) { return static_cast<cudaStream_t>(device.stream); }

inline void check_cuda(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("fcos_fast: ") + cudaGetErrorString(error));
}
inline void check_launch() { check_cuda(cudaGetLastError()); }

inline void check_limit(const char* op, const char* name, int64_t value, int64_t most) {
  if (value <= most) return;
  throw std::runtime_error(std::string("fcos_fast::") + op + ": " + std::to_string(value) + " " + name +
                           "; at most " + std::to_string(most) + " on a GPU");
}

template <class T>
T* zeroed_scratch(const Cuda& device, int64_t count) {
  T* memory = device.scratch<T>(count);
  check_cuda(cudaMemsetAsync(memory, 0, count * sizeof(T), stream_of(device)));
  return memory;
}

// N elements in one memory access; the pointer must be aligned to N elements.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T v[N];
};

// N elements in one access, or fewer, one by one, at the end of the tensor.
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

// Sum over the block in a fixed order. The result is valid in thread 0.
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

// Exclusive prefix sum over the block; *total is the sum over the block. Every thread must call it.
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

// Stream compaction: writes the indices of the items (of `count`, one per thread) that satisfy a condition to `list`,
// in order, and returns their number. Every thread of the block of kThreads must call it; `list` is in shared memory.
__device__ __forceinline__ int list_in_order(bool wanted, int* list) {
  __shared__ int before[kThreads / 32 + 1];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const unsigned votes = __ballot_sync(0xffffffffu, wanted);
  __syncthreads();  // the previous list is no longer needed
  if (lane == 0) before[warp] = __popc(votes);
  __syncthreads();
  int first = 0, all = 0;
#pragma unroll
  for (int w = 0; w < kThreads / 32; ++w) {
    if (w < warp) first += before[w];
    all += before[w];
  }
  if (wanted) list[first + __popc(votes & ((1u << lane) - 1))] = int(threadIdx.x);
  __syncthreads();
  return all;
}

// True for all threads of the block that finishes last; the writes of all other blocks are then visible. *ended must
// start at 0.
__device__ __forceinline__ bool is_last_block(unsigned* ended, unsigned blocks) {
  __shared__ bool last;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(ended, 1u) == blocks - 1;
  __syncthreads();
  __threadfence();
  return last;
}

// Sum of partial[0..n)[column]. The result is valid in thread 0.
__device__ __forceinline__ double sum_of_partials(const double* partial, int64_t n, int columns, int column) {
  double total = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) total += partial[i * columns + column];
  return block_sum(total);
}

// out[k] = sum of partial[0..n)[k], one block per k.
template <class Out>
__global__ void add_partial_sums(const double* partial, int64_t n, int columns, Out* out) {
  const double total = sum_of_partials(partial, n, columns, blockIdx.x);
  if (threadIdx.x == 0) out[blockIdx.x] = Out(total);
}

}  // namespace fcos_fast
