// Kernels with a mistake each, which the emulation must name.
#include <cuda_runtime.h>

#include <exception>
#include <string>

namespace {

constexpr int kThreads = 64;

__global__ void correct(int* out) {
  __shared__ int values[kThreads];
  values[threadIdx.x] = int(threadIdx.x);
  __syncthreads();
  out[blockIdx.x * kThreads + threadIdx.x] = values[kThreads - 1 - threadIdx.x];
}
__global__ void no_barrier(int* out) {
  __shared__ int values[kThreads];
  values[threadIdx.x] = int(threadIdx.x);
  __syncwarp();
  out[blockIdx.x * kThreads + threadIdx.x] = values[kThreads - 1 - threadIdx.x];
}
__global__ void no_warp_barrier(int* out) {
  __shared__ int values[kThreads];
  values[threadIdx.x] = int(threadIdx.x);
  out[blockIdx.x * kThreads + threadIdx.x] = values[threadIdx.x ^ 1];
}
__global__ void blocks_write_the_same(int* out) { out[threadIdx.x] = int(blockIdx.x); }
__global__ void barrier_for_some(int* out) {
  if (threadIdx.x < 32) __syncthreads();
  out[blockIdx.x * kThreads + threadIdx.x] = 0;
}
__global__ void two_barriers(int* out) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}
__global__ void lanes_missing(int* out) {
  int x = int(threadIdx.x);
  if (threadIdx.x % 32 < 16) x = __shfl_down_sync(0xffffffffu, x, 8);
  out[blockIdx.x * kThreads + threadIdx.x] = x;
}
__global__ void beyond_shared(int* out) {
  __shared__ int values[kThreads];
  int* p = values;
  p[threadIdx.x + 1] = 0;
}
__global__ void unwritten(int* out) {
  __shared__ int values[kThreads];
  out[blockIdx.x * kThreads + threadIdx.x] = values[threadIdx.x];
}
__device__ unsigned ended;
__global__ void handed_over(int* out) {
  out[blockIdx.x] = 1;
  __threadfence();
  const bool last = atomicAdd(&ended, 1u) % gridDim.x == gridDim.x - 1;
  __threadfence();
  if (last) out[2] = out[0] + out[1];
}
__global__ void no_fence(int* out) {
  out[blockIdx.x] = 1;
  if (atomicAdd(&ended, 1u) % gridDim.x == gridDim.x - 1) out[2] = out[0] + out[1];
}
__global__ void misaligned(int* out) {
  *reinterpret_cast<float4*>(out + 1 + 4 * (blockIdx.x * kThreads + threadIdx.x)) = make_float4(0, 0, 0, 0);
}

alignas(16) int memory[16 * kThreads];
std::string said;

}  // namespace

// What the emulation says of the kernel; "" where it says nothing.
extern "C" __attribute__((visibility("default"))) const char* complaint(const char* kernel) {
  const std::string name = kernel;
  said.clear();
  try {
    if (name == "correct") correct<<<2, kThreads>>>(memory);
    if (name == "no_barrier") no_barrier<<<2, kThreads>>>(memory);
    if (name == "no_warp_barrier") no_warp_barrier<<<2, kThreads>>>(memory);
    if (name == "blocks_write_the_same") blocks_write_the_same<<<2, kThreads>>>(memory);
    if (name == "barrier_for_some") barrier_for_some<<<2, kThreads>>>(memory);
    if (name == "two_barriers") two_barriers<<<2, kThreads>>>(memory);
    if (name == "lanes_missing") lanes_missing<<<2, kThreads>>>(memory);
    if (name == "beyond_shared") beyond_shared<<<2, kThreads>>>(memory);
    if (name == "unwritten") unwritten<<<2, kThreads>>>(memory);
    if (name == "handed_over") handed_over<<<2, 1>>>(memory);
    if (name == "no_fence") no_fence<<<2, 1>>>(memory);
    if (name == "misaligned") misaligned<<<2, kThreads>>>(memory);
  } catch (const std::exception& error) {
    said = error.what();
  }
  return said.c_str();
}
