// Emulates on the CPU the part of CUDA that the .cu files use. Each thread of a block is a fiber; see runtime.cpp.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __forceinline__ inline
#define EMULATED_CUDA_ARCH 750  // build.py replaces __CUDA_ARCH__ by this

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
template <class T>
struct Pair {
  T x, y;
};
inline Pair<torch::headeronly::BFloat16> __floats2bfloat162_rn(float x, float y) { return {x, y}; }
inline Pair<torch::headeronly::Half> __floats2half2_rn(float x, float y) { return {x, y}; }

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace emulation {

struct Place {  // source location, for messages and to distinguish barriers
  const char* file;
  int line;
};
#define EMULATION_HERE ::emulation::Place here = {__builtin_FILE(), __builtin_LINE()}

enum class Vote { kSum, kBallot, kNone };
enum class Access { kRead, kWrite, kAtomic };

struct Thread {  // the body of each thread, with the arguments of the launch
  void (*run)(const void* closure);
  const void* closure;
};

void launch(const char* kernel, Thread thread, dim3 grid, dim3 block, size_t shared_bytes, void* stream);
void enter_kernel(size_t parameter_bytes, int max_threads);
void* shared(const void* variable, size_t bytes);
void* dynamic_shared();
int block_barrier(int value, Place here);
void warp_barrier(unsigned mask, Place here);
// Exchanges values of `bytes` bytes between the lanes of a warp.
const void* warp_exchange(unsigned mask, const void* value, size_t bytes, const char* kind, Place here);
void fence();
void touch(const void* address, size_t bytes, Access access, const void* caller);
int lane();
[[noreturn]] void fail(const char* what, Place here);

// Shared memory of one variable in the running block; `Tag` is a distinct type for each declaration.
template <class T, class Tag>
T& shared_variable(Tag) {
  static_assert(std::is_trivially_destructible_v<T>, "plain data");
  static const char variable = 0;
  return *static_cast<T*>(shared(&variable, sizeof(T)));
}

template <class T>
T exchange(unsigned mask, T value, int from, const char* kind, Place here) {
  const char* values = static_cast<const char*>(warp_exchange(mask, &value, sizeof(T), kind, here));
  if (!(mask >> from & 1)) fail("a shuffle reads a lane that is not in its mask", here);
  T result;
  memcpy(&result, values + from * sizeof(T), sizeof(T));
  return result;
}

inline unsigned ballot(unsigned mask, bool value, const char* kind, Place here) {
  const bool* values = static_cast<const bool*>(warp_exchange(mask, &value, sizeof(bool), kind, here));
  unsigned bits = 0;
  for (int i = 0; i < 32; ++i) bits |= unsigned((mask >> i & 1) && values[i]) << i;
  return bits;
}

template <class T>
struct Same {
  using type = T;
};
template <class T, class F>
__attribute__((noinline, no_sanitize_thread)) T atomic(T* p, const F& f) {
  touch(p, sizeof(T), Access::kAtomic, __builtin_return_address(0));
  T old;
  memcpy(&old, p, sizeof(T));
  const T now = f(old);
  memcpy(p, &now, sizeof(T));
  return old;
}

// The first statement of every kernel.
template <class... Parameters>
void enter_kernel(int max_threads = 1024) {
  size_t bytes = 0;
  ((bytes =
        (bytes + alignof(Parameters) - 1) / alignof(Parameters) * alignof(Parameters) + sizeof(Parameters)),
   ...);
  enter_kernel(bytes, max_threads);
}

template <class F>
void launch(const char* kernel, const F& thread, dim3 grid, dim3 block, size_t shared_bytes = 0,
            void* stream = nullptr) {
  const auto run = [](const void* closure) { (*static_cast<const F*>(closure))(); };
  launch(kernel, Thread{run, &thread}, grid, block, shared_bytes, stream);
}

// ---- host side, which is also checked ----

void* current_stream();
void check_stream(const char* what, void* stream);
void check_not_capturing(const char* what);
void launch_is_checked();
void allow_shared(const char* arguments, int bytes);  // for cudaFuncSetAttribute
void* allocate(size_t bytes);                         // device memory
void release(void* memory);

// The operator ends with the lifetime of its guard.
struct OperatorGuard {
  explicit OperatorGuard(int) {}
  ~OperatorGuard() noexcept(false);
};

}  // namespace emulation

// ---- barriers and warps ----

inline void __syncthreads(EMULATION_HERE) { emulation::block_barrier(0, here); }
inline int __syncthreads_count(int x, EMULATION_HERE) { return emulation::block_barrier(x != 0, here); }
inline int __syncthreads_or(int x, EMULATION_HERE) { return emulation::block_barrier(x != 0, here) != 0; }
inline int __syncthreads_and(int x, EMULATION_HERE) { return emulation::block_barrier(x == 0, here) == 0; }
inline void __threadfence() { emulation::fence(); }
inline void __syncwarp(unsigned mask = ~0u, EMULATION_HERE) { emulation::warp_barrier(mask, here); }

template <class T>
T __shfl_sync(unsigned mask, T x, int from, EMULATION_HERE) {
  return emulation::exchange(mask, x, from & 31, "__shfl_sync", here);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T x, int bits, EMULATION_HERE) {
  return emulation::exchange(mask, x, (emulation::lane() ^ bits) & 31, "__shfl_xor_sync", here);
}
template <class T>
T __shfl_up_sync(unsigned mask, T x, unsigned by, EMULATION_HERE) {
  const int lane = emulation::lane(), from = lane - int(by);
  return emulation::exchange(mask, x, from < 0 ? lane : from, "__shfl_up_sync", here);
}
template <class T>
T __shfl_down_sync(unsigned mask, T x, unsigned by, EMULATION_HERE) {
  const int lane = emulation::lane(), from = lane + int(by);
  return emulation::exchange(mask, x, from > 31 ? lane : from, "__shfl_down_sync", here);
}
inline unsigned __ballot_sync(unsigned mask, bool x, EMULATION_HERE) {
  return emulation::ballot(mask, x, "__ballot_sync", here);
}
inline bool __any_sync(unsigned mask, bool x, EMULATION_HERE) {
  return emulation::ballot(mask, x, "__any_sync", here) != 0;
}
inline bool __all_sync(unsigned mask, bool x, EMULATION_HERE) {
  return emulation::ballot(mask, x, "__all_sync", here) == mask;
}

// ---- arithmetic ----

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(unsigned(x)); }
inline int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll((unsigned long long)x); }
inline float __int_as_float(int bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
inline int __float_as_int(float x) {
  int bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
inline int __vimin_s32_relu(int a, int b) { return a < b ? (a > 0 ? a : 0) : (b > 0 ? b : 0); }
template <class A, class B>
constexpr auto min(A a, B b) {
  using T = std::common_type_t<A, B>;
  return T(b) < T(a) ? T(b) : T(a);
}
template <class A, class B>
constexpr auto max(A a, B b) {
  using T = std::common_type_t<A, B>;
  return T(a) < T(b) ? T(b) : T(a);
}
template <class T>
T __ldg(const T* p) {
  return *p;
}

template <class T>
void __stcg(T* p, T x) {
  *p = x;
}

template <class T>
T atomicAdd(T* p, typename emulation::Same<T>::type x) {
  return emulation::atomic(p, [=](T old) { return T(old + x); });
}
template <class T>
T atomicMin(T* p, typename emulation::Same<T>::type x) {
  return emulation::atomic(p, [=](T old) { return min(old, x); });
}
template <class T>
T atomicMax(T* p, typename emulation::Same<T>::type x) {
  return emulation::atomic(p, [=](T old) { return max(old, x); });
}

// ---- host side ----

// Failing calls throw an exception.
using cudaStream_t = void*;
using cudaError_t = int;
enum { cudaSuccess };
inline cudaError_t cudaGetLastError() {
  emulation::launch_is_checked();
  return cudaSuccess;
}
inline const char* cudaGetErrorString(cudaError_t) { return ""; }
enum { cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, int kind, cudaStream_t stream) {
  if (kind == cudaMemcpyDeviceToHost) emulation::check_not_capturing("cudaMemcpyAsync");
  emulation::check_stream("cudaMemcpyAsync", stream);
  memcpy(to, from, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t stream) {
  emulation::check_stream("cudaMemsetAsync", stream);
  memset(p, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) {
  emulation::check_not_capturing("cudaStreamSynchronize");
  return cudaSuccess;
}
template <class T>
cudaError_t cudaMalloc(T** p, size_t bytes) {
  emulation::check_not_capturing("cudaMalloc");
  *p = static_cast<T*>(emulation::allocate(bytes));
  return cudaSuccess;
}
inline cudaError_t cudaFree(void* p) {
  emulation::check_not_capturing("cudaFree");
  emulation::release(p);
  return cudaSuccess;
}
enum { cudaFuncAttributeMaxDynamicSharedMemorySize };
template <class Kernel>
cudaError_t set_attribute(const char* arguments, Kernel*, int, int bytes) {
  emulation::allow_shared(arguments, bytes);
  return cudaSuccess;
}
#define cudaFuncSetAttribute(...) set_attribute(#__VA_ARGS__, __VA_ARGS__)

#undef STD_CUDA_CHECK
#define STD_CUDA_CHECK(call) (void)(call)
#undef STD_CUDA_KERNEL_LAUNCH_CHECK
#define STD_CUDA_KERNEL_LAUNCH_CHECK() (void)cudaGetLastError()
#define aoti_torch_get_current_cuda_stream(index, stream) \
  (*(stream) = ::emulation::current_stream(), AOTI_TORCH_SUCCESS)
namespace torch::stable::accelerator {
using EmulatedDeviceGuard = ::emulation::OperatorGuard;
}
#define DeviceGuard EmulatedDeviceGuard
