// 16 bytes of elements, in the four registers of one access. Otherwise compilers split them into 16-bit elements.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "../dtype.h"

namespace fcos_fast {

template <class To, class From>
__device__ __forceinline__ To reinterpret(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "sizes differ");
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

__device__ __forceinline__ auto pair_of(float low, float high, BFloat16) {
  return __floats2bfloat162_rn(low, high);
}
__device__ __forceinline__ auto pair_of(float low, float high, Half) { return __floats2half2_rn(low, high); }

template <class T>
struct alignas(16) Vector {
  static constexpr int kSize = 16 / sizeof(T), kPerWord = 4 / sizeof(T);

  uint32_t words[4];

  __device__ __forceinline__ static Vector of(const float (&values)[kSize]) {
    Vector vector;
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      if constexpr (sizeof(T) == 4) {
        vector.words[w] = reinterpret<uint32_t>(values[w]);
      } else {
        vector.words[w] = reinterpret<uint32_t>(pair_of(values[2 * w], values[2 * w + 1], T()));
      }
    }
    return vector;
  }

  __device__ __forceinline__ float operator[](int i) const {
    const uint32_t word = words[i / kPerWord];
    if constexpr (sizeof(T) == 4) return reinterpret<float>(word);
    const bool high = i % 2 != 0;
    if constexpr (std::is_same_v<T, BFloat16>)
      return reinterpret<float>(high ? word & 0xffff0000u : word << 16);
    if constexpr (std::is_same_v<T, Half>)
      return float(reinterpret<Half>(uint16_t(high ? word >> 16 : word)));
  }

  __device__ __forceinline__ void set(int i, float value) {
    if constexpr (sizeof(T) == 4) {
      words[i] = reinterpret<uint32_t>(value);
    } else {
      const uint32_t bits = reinterpret<uint16_t>(T(value)), word = words[i / 2];
      words[i / 2] = i % 2 != 0 ? (word & 0xffffu) | bits << 16 : (word & 0xffff0000u) | bits;
    }
  }
};

// The same interface for a single element, without an alignment requirement.
template <class T>
struct Single {
  static constexpr int kSize = 1;

  T value;

  __device__ __forceinline__ static Single of(const float (&values)[1]) { return {T(values[0])}; }
  __device__ __forceinline__ float operator[](int) const { return float(value); }
  __device__ __forceinline__ void set(int, float x) { value = T(x); }
};

template <class V, class T>
__device__ __forceinline__ V load(const T* p) {
  return *reinterpret_cast<const V*>(p);
}
// With intrinsics, since nvcc would store one word at a time.
template <class T>
__device__ __forceinline__ void store(T* p, const Single<T>& values) {
  __stcg(p, values.value);
}
template <class T>
__device__ __forceinline__ void store(T* p, const Vector<T>& values) {
  const uint32_t* w = values.words;
  __stcg(reinterpret_cast<uint4*>(p), make_uint4(w[0], w[1], w[2], w[3]));
}

}  // namespace fcos_fast
