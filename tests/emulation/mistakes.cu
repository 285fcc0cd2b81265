// Kernels and launches with one mistake each, which the emulation must detect.
#include <cuda_runtime.h>

#include <exception>
#include <functional>
#include <map>
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
__global__ void misaligned(int* out) {
  *reinterpret_cast<float4*>(out + 1 + 4 * (blockIdx.x * kThreads + threadIdx.x)) = make_float4(0, 0, 0, 0);
}

__global__ void beyond_tensor(int* out) { out[blockIdx.x * kThreads + threadIdx.x + 1] = 0; }
__global__ void reads(const int* p, int* out) { out[threadIdx.x] = p[0]; }
__global__ void __launch_bounds__(kThreads / 2) narrow(int* out) { out[threadIdx.x] = 0; }
__global__ void much_shared(int* out) {
  __shared__ int of_block[10 << 10];
  extern __shared__ int more[];
  of_block[threadIdx.x] = more[threadIdx.x] = 0;
  out[threadIdx.x] = of_block[threadIdx.x];
}
struct Many {
  int values[1 << 10];
};
__global__ void parameters(Many many, int* out) { out[threadIdx.x] = many.values[threadIdx.x]; }

// The last block to finish reads the data of the other; out[9] counts from 0.
__global__ void handed_over(int* out) {
  out[blockIdx.x] = 1;
  __threadfence();
  const bool last = atomicAdd(&out[9], 1) == int(gridDim.x) - 1;
  __threadfence();
  if (last) out[2] = out[0] + out[1];
}
__global__ void no_fence(int* out) {
  out[blockIdx.x] = 1;
  if (atomicAdd(&out[9], 1) == int(gridDim.x) - 1) out[2] = out[0] + out[1];
}
// Two pairs of blocks; the last of a pair continues writing, which does not affect the other pair.
__global__ void handed_over_in_pairs(int* out) {
  const int pair = int(blockIdx.x) / 2;
  out[blockIdx.x] = 1;
  __threadfence();
  const bool last = atomicAdd(&out[9 + pair], 1) == 1;
  __threadfence();
  if (last) out[4 + pair] = out[2 * pair] + out[2 * pair + 1];
}
__global__ void other_counter(int* out) {
  out[blockIdx.x] = 1;
  __threadfence();
  atomicAdd(&out[9 + blockIdx.x], 1);
  __threadfence();
  if (blockIdx.x == 1) out[2] = out[0];
  if (blockIdx.x == 0) out[3] = out[1];
}

constexpr size_t kBytes = 8 * kThreads * sizeof(int);

// Four times what `correct` writes.
struct Memory {
  Memory() : p(static_cast<int*>(emulation::allocate(kBytes))) {}
  ~Memory() { emulation::release(p); }
  int* const p;
};

void check_launch() { (void)cudaGetLastError(); }

cudaStream_t current() {
  void* stream = nullptr;
  (void)aoti_torch_get_current_cuda_stream(0, &stream);
  return stream;
}

using Mistake = std::function<void(int* out, cudaStream_t)>;

#define LAUNCH(kernel)                          \
  {#kernel, [](int* out, cudaStream_t stream) { \
     kernel<<<2, kThreads, 0, stream>>>(out);   \
     check_launch();                            \
   }}

const std::map<std::string, Mistake> mistakes = {
    LAUNCH(correct),
    LAUNCH(no_barrier),
    LAUNCH(no_warp_barrier),
    LAUNCH(blocks_write_the_same),
    LAUNCH(barrier_for_some),
    LAUNCH(two_barriers),
    LAUNCH(lanes_missing),
    LAUNCH(beyond_shared),
    LAUNCH(unwritten),
    LAUNCH(misaligned),
    LAUNCH(narrow),
    {"beyond_tensor",
     [](int* out, cudaStream_t stream) {
       beyond_tensor<<<8, kThreads, 0, stream>>>(out);
       check_launch();
     }},
    {"freed",
     [](int* out, cudaStream_t stream) {
       const int* p = Memory().p;
       reads<<<1, kThreads, 0, stream>>>(p, out);
       check_launch();
     }},
    {"host_variable",
     [](int* out, cudaStream_t stream) {
       const int here = 0;
       reads<<<1, kThreads, 0, stream>>>(&here, out);
       check_launch();
     }},
    {"wide_block",
     [](int* out, cudaStream_t stream) {
       correct<<<1, 1025, 0, stream>>>(out);
       check_launch();
     }},
    {"high_grid",
     [](int* out, cudaStream_t stream) {
       correct<<<dim3(1, 65536), kThreads, 0, stream>>>(out);
       check_launch();
     }},
    {"much_shared",
     [](int* out, cudaStream_t stream) {
       much_shared<<<1, kThreads, (8 << 10) + 16, stream>>>(out);
       check_launch();
     }},
    {"much_shared_asked_for",
     [](int* out, cudaStream_t stream) {
       cudaFuncSetAttribute(much_shared, cudaFuncAttributeMaxDynamicSharedMemorySize, 64 << 10);
       much_shared<<<1, kThreads, (8 << 10) + 16, stream>>>(out);
       check_launch();
     }},
    {"many_parameters",
     [](int* out, cudaStream_t stream) {
       parameters<<<1, kThreads, 0, stream>>>(Many{}, out);
       check_launch();
     }},
    {"default_stream",
     [](int* out, cudaStream_t) {
       correct<<<2, kThreads>>>(out);
       check_launch();
     }},
    {"other_stream",
     [](int* out, cudaStream_t) {
       correct<<<2, kThreads, 0, &out>>>(out);
       check_launch();
     }},
    {"memset_on_default_stream", [](int* out, cudaStream_t) { cudaMemsetAsync(out, 0, kBytes, nullptr); }},
    {"two_launches_one_check",
     [](int* out, cudaStream_t stream) {
       correct<<<2, kThreads, 0, stream>>>(out);
       narrow<<<2, kThreads / 2, 0, stream>>>(out);
       check_launch();
     }},
    {"no_check", [](int* out, cudaStream_t stream) { correct<<<2, kThreads, 0, stream>>>(out); }},
    {"host_reads", [](int* out, cudaStream_t) { out[0] += 1; }},
    {"waits_in_capture", [](int*, cudaStream_t stream) { cudaStreamSynchronize(stream); }},
    {"copies_in_capture",
     [](int* out, cudaStream_t stream) {
       int here;
       cudaMemcpyAsync(&here, out, sizeof here, cudaMemcpyDeviceToHost, stream);
     }},
    {"handed_over",
     [](int* out, cudaStream_t stream) {
       cudaMemsetAsync(out, 0, kBytes, stream);
       handed_over<<<2, 1, 0, stream>>>(out);
       check_launch();
     }},
    {"handed_over_in_pairs",
     [](int* out, cudaStream_t stream) {
       cudaMemsetAsync(out, 0, kBytes, stream);
       handed_over_in_pairs<<<4, 1, 0, stream>>>(out);
       check_launch();
     }},
    {"other_counter",
     [](int* out, cudaStream_t stream) {
       cudaMemsetAsync(out, 0, kBytes, stream);
       other_counter<<<2, 1, 0, stream>>>(out);
       check_launch();
     }},
    {"no_fence",
     [](int* out, cudaStream_t stream) {
       cudaMemsetAsync(out, 0, kBytes, stream);
       no_fence<<<2, 1, 0, stream>>>(out);
       check_launch();
     }},
};

std::string said;

}  // namespace

// Returns the message of the emulation, or "".
extern "C" __attribute__((visibility("default"))) const char* complaint(const char* name) {
  said.clear();
  try {
    const Memory memory;
    const torch::stable::accelerator::DeviceGuard guard(0);
    mistakes.at(name)(memory.p, current());
  } catch (const std::exception& error) {
    said = error.what();
  }
  return said.c_str();
}
