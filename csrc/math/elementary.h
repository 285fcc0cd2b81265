// exp, log and related functions on the ranges that the losses need, for float, double and the SIMD types of
// cpu/vec.h.
//
// Polynomials are minimax fits of the relative error, computed in float64. They are accurate to about 2 float32 ulp.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "host_device.h"

namespace fcos_fast::math {

template <class T>
FCOS_HOST_DEVICE T select(bool mask, T a, T b) {
  return mask ? a : b;
}
FCOS_HOST_DEVICE float abs(float x) { return fabsf(x); }
FCOS_HOST_DEVICE double abs(double x) { return fabs(x); }
FCOS_HOST_DEVICE float sqrt(float x) { return sqrtf(x); }
FCOS_HOST_DEVICE double sqrt(double x) { return ::sqrt(x); }
FCOS_HOST_DEVICE float atan2(float y, float x) { return atan2f(y, x); }
FCOS_HOST_DEVICE double atan2(double y, double x) { return ::atan2(y, x); }

// A fused multiply-add if the hardware has one. On the baseline instruction set a * b + c, since libm's fma is slow.
FCOS_HOST_DEVICE float fma(float a, float b, float c) {
#if defined(__CUDA_ARCH__)
  return fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

FCOS_HOST_DEVICE double fma(double a, double b, double c) {
#if defined(__CUDA_ARCH__)
  return ::fma(a, b, c);
#else
  return a * b + c;
#endif
}

// 1 / x to 1 ulp, for x of moderate size. Not for values that are compared with a threshold.
FCOS_HOST_DEVICE float reciprocal(float x) {
#if defined(__CUDA_ARCH__)
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
#else
  return 1.0f / x;
#endif
}
FCOS_HOST_DEVICE double reciprocal(double x) { return 1.0 / x; }

template <class T>
FCOS_HOST_DEVICE T min(T a, T b) {
  return select(a < b, a, b);
}
template <class T>
FCOS_HOST_DEVICE T max(T a, T b) {
  return select(a > b, a, b);
}

// log(1 + e) for e in [0, 1].
template <class T>
FCOS_HOST_DEVICE T log1p_unit(T e) {
  constexpr float c[] = {9.999999699e-01f,  -4.999949311e-01f, 3.331909622e-01f,
                         -2.484297754e-01f, 1.910598847e-01f,  -1.366320689e-01f,
                         7.822549322e-02f,  -2.950495712e-02f, 5.232623981e-03f};
#if defined(__CUDA_ARCH__)
  T s = T(c[8]);
#pragma unroll
  for (int i = 7; i >= 0; --i) s = fma(s, e, T(c[i]));
  return s * e;
#else
  // Estrin's scheme: two more products, a third of the latency.
  const T e2 = e * e, e4 = e2 * e2;
  const T low = fma(e2, fma(e, T(c[3]), T(c[2])), fma(e, T(c[1]), T(c[0])));
  const T middle = fma(e2, fma(e, T(c[7]), T(c[6])), fma(e, T(c[5]), T(c[4])));
  return e * fma(e4, fma(e4, T(c[8]), middle), low);
#endif
}
FCOS_HOST_DEVICE double log1p_unit(double e) { return log1p(e); }

// exp(-a) for a >= 0.
FCOS_HOST_DEVICE float exp_negative(float a) {
#if defined(__CUDA_ARCH__)
  float e;  // 2 ulp plus the rounding of the product: about 1e-7 for the logits of a detector
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(e) : "f"(a * -1.44269504f));
  return e;
#else
  return std::exp(-a);
#endif
}
FCOS_HOST_DEVICE double exp_negative(double a) { return ::exp(-a); }

// log(w) for w > 0; w is clamped to the smallest normal number.
FCOS_HOST_DEVICE float log_positive(float w) { return logf(w < 1.17549435e-38f ? 1.17549435e-38f : w); }
FCOS_HOST_DEVICE double log_positive(double w) {
  return log(w < 2.2250738585072014e-308 ? 2.2250738585072014e-308 : w);
}

// exp(x) to 1 ulp for every x. Without fused operations or library functions, so all devices get the same bits.
FCOS_HOST_DEVICE float exp(float x) {
  if (x > 88.7228317f) return INFINITY;
  const float bounded = x < -87.3f ? -87.3f : x;                        // NaN propagates
  const float n = (bounded * 1.44269504f + 12582912.0f) - 12582912.0f;  // 1.5 * 2^23: rounds to an integer
  const float r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;    // the first product is exact
  float s = 1.381460228e-03f;
  s = s * r + 8.368715644e-03f;
  s = s * r + 4.166838899e-02f;
  s = s * r + 1.666652113e-01f;
  s = s * r + 4.999999404e-01f;
  s = 1.0f + (r + r * r * s);
  // 2^n as two factors, since 2^128 overflows float.
  const int32_t exponent = n == n ? int32_t(n) : 0, half = exponent / 2;
  const int32_t bits[2] = {(half + 127) << 23, (exponent - half + 127) << 23};
  float factors[2];
  memcpy(factors, bits, sizeof bits);
  return s * factors[0] * factors[1];
}
FCOS_HOST_DEVICE double exp(double x) { return ::exp(x); }

}  // namespace fcos_fast::math
