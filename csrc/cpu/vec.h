// SIMD vectors of float and double, for the instruction set selected by the including file.
//
// simd_<name>.cpp defines FCOS_SIMD_NAMESPACE and FCOS_SIMD_BYTES, switches the compiler's target, and then
// includes the *_kernel.h files. Everything is in that namespace, so instruction sets never share a symbol.
// Based on the compilers' vector extensions: the same source works for SSE2, AVX2, AVX-512 and NEON.
#pragma once

#include <cstdint>
#include <cstring>

#include "../math/elementary.h"
#include "kernels.h"

#define FCOS_INLINE inline __attribute__((always_inline))
#define FCOS_LAMBDA __attribute__((always_inline))

namespace fcos_fast::FCOS_SIMD_NAMESPACE {

typedef float FloatLanes __attribute__((vector_size(FCOS_SIMD_BYTES)));
typedef int32_t IntLanes __attribute__((vector_size(FCOS_SIMD_BYTES)));
typedef uint32_t UintLanes __attribute__((vector_size(FCOS_SIMD_BYTES)));
typedef uint16_t ShortLanes __attribute__((vector_size(FCOS_SIMD_BYTES / 2)));
typedef double DoubleLanes __attribute__((vector_size(FCOS_SIMD_BYTES)));
typedef int64_t LongLanes __attribute__((vector_size(FCOS_SIMD_BYTES)));

// A vector of numbers of type R; masks are integers of the same width.
template <class R, class RealLanes, class IntegerLanes>
struct VecOf {
  using Real = R;
  using Reals = RealLanes;
  using Ints = IntegerLanes;
  static constexpr int kLanes = FCOS_SIMD_BYTES / sizeof(R);

  struct Mask {
    Ints m;  // -1 or 0
  };

  Reals v;

  VecOf() = default;
  FCOS_INLINE explicit VecOf(R x) : v(x - Reals{}) {}
  FCOS_INLINE explicit VecOf(Reals x) : v(x) {}

  FCOS_INLINE friend VecOf operator+(VecOf a, VecOf b) { return VecOf(a.v + b.v); }
  FCOS_INLINE friend VecOf operator-(VecOf a, VecOf b) { return VecOf(a.v - b.v); }
  FCOS_INLINE friend VecOf operator*(VecOf a, VecOf b) { return VecOf(a.v * b.v); }
  FCOS_INLINE friend VecOf operator/(VecOf a, VecOf b) { return VecOf(a.v / b.v); }
  FCOS_INLINE friend VecOf operator-(VecOf a) { return VecOf(-a.v); }
  FCOS_INLINE friend Mask operator<(VecOf a, VecOf b) { return {a.v < b.v}; }
  FCOS_INLINE friend Mask operator>(VecOf a, VecOf b) { return {a.v > b.v}; }
  FCOS_INLINE friend Mask operator>=(VecOf a, VecOf b) { return {a.v >= b.v}; }
  FCOS_INLINE friend Mask operator==(VecOf a, VecOf b) { return {a.v == b.v}; }
  FCOS_INLINE friend Mask operator&(Mask a, Mask b) { return {a.m & b.m}; }
  FCOS_INLINE friend Mask operator|(Mask a, Mask b) { return {a.m | b.m}; }
  FCOS_INLINE friend VecOf select(Mask mask, VecOf a, VecOf b) { return VecOf(mask.m ? a.v : b.v); }
};

using Vec = VecOf<float, FloatLanes, IntLanes>;
using VecDouble = VecOf<double, DoubleLanes, LongLanes>;

// The vector type that elements of type T are computed in.
template <class T>
using vec_t = std::conditional_t<std::is_same_v<T, double>, VecDouble, Vec>;

constexpr int kFloats = Vec::kLanes;

// Lane-wise fallbacks.
template <class V, class F>
FCOS_INLINE V map_lanes(V x, F f) {
  V r;
  for (int i = 0; i < V::kLanes; ++i) r.v[i] = f(x.v[i]);
  return r;
}
template <class V>
FCOS_INLINE bool any_lane(typename V::Mask mask) {
  typename V::Ints m = mask.m;
  bool found = false;
  for (int i = 0; i < V::kLanes; ++i) found |= m[i] != 0;
  return found;
}
template <class V>
FCOS_INLINE typename V::Real sum(V x) {
  typename V::Real total = 0;
  for (int i = 0; i < V::kLanes; ++i) total += x.v[i];
  return total;
}
FCOS_INLINE Vec abs(Vec x) { return Vec((FloatLanes)((UintLanes)x.v & 0x7fffffffu)); }

// float64 is for gradient checks and reference results, not for speed: it uses the scalar functions.
FCOS_INLINE VecDouble abs(VecDouble x) { return select(x < VecDouble(0.0), -x, x); }
FCOS_INLINE VecDouble fma(VecDouble a, VecDouble b, VecDouble c) { return a * b + c; }
FCOS_INLINE VecDouble min(VecDouble a, VecDouble b) { return select(a < b, a, b); }
FCOS_INLINE VecDouble max(VecDouble a, VecDouble b) { return select(a > b, a, b); }
FCOS_INLINE VecDouble reciprocal(VecDouble x) { return VecDouble(1.0) / x; }
FCOS_INLINE VecDouble sqrt(VecDouble x) {
  return map_lanes(x, [](double d) { return std::sqrt(d); });
}
FCOS_INLINE VecDouble log1p_unit(VecDouble x) {
  return map_lanes(x, [](double d) { return std::log1p(d); });
}
FCOS_INLINE VecDouble log_positive(VecDouble x) {
  return map_lanes(x, [](double d) { return math::log_positive(d); });
}
FCOS_INLINE VecDouble atan2(VecDouble y, VecDouble x) {
  for (int i = 0; i < VecDouble::kLanes; ++i) y.v[i] = math::atan2(y.v[i], x.v[i]);
  return y;
}
FCOS_INLINE bool any(VecDouble::Mask mask) { return any_lane<VecDouble>(mask); }

#if FCOS_SIMD_BYTES == 64
FCOS_INLINE Vec fma(Vec a, Vec b, Vec c) {
  return Vec((FloatLanes)_mm512_fmadd_ps((__m512)a.v, (__m512)b.v, (__m512)c.v));
}
// One Newton step from a 14-bit estimate: below 1 ulp, at half the cost of a division. x must not be near 0 or
// infinity.
FCOS_INLINE Vec reciprocal(Vec x) {
  const Vec r((FloatLanes)_mm512_rcp14_ps((__m512)x.v));
  return fma(fma(-x, r, Vec(1.0f)), r, r);
}
FCOS_INLINE Vec sqrt(Vec x) { return Vec((FloatLanes)_mm512_sqrt_ps((__m512)x.v)); }
FCOS_INLINE Vec min(Vec a, Vec b) { return Vec((FloatLanes)_mm512_min_ps((__m512)a.v, (__m512)b.v)); }
FCOS_INLINE Vec max(Vec a, Vec b) { return Vec((FloatLanes)_mm512_max_ps((__m512)a.v, (__m512)b.v)); }
FCOS_INLINE Vec rounded(Vec x) { return Vec((FloatLanes)_mm512_roundscale_ps((__m512)x.v, 8)); }
FCOS_INLINE Vec times_power_of_two(Vec x, Vec n) {
  return Vec((FloatLanes)_mm512_scalef_ps((__m512)x.v, (__m512)n.v));
}
FCOS_INLINE bool any(Vec::Mask mask) { return _mm512_test_epi32_mask((__m512i)mask.m, (__m512i)mask.m) != 0; }
#elif FCOS_SIMD_BYTES == 32
FCOS_INLINE Vec fma(Vec a, Vec b, Vec c) {
  return Vec((FloatLanes)_mm256_fmadd_ps((__m256)a.v, (__m256)b.v, (__m256)c.v));
}
FCOS_INLINE Vec sqrt(Vec x) { return Vec((FloatLanes)_mm256_sqrt_ps((__m256)x.v)); }
FCOS_INLINE Vec min(Vec a, Vec b) { return Vec((FloatLanes)_mm256_min_ps((__m256)a.v, (__m256)b.v)); }
FCOS_INLINE Vec max(Vec a, Vec b) { return Vec((FloatLanes)_mm256_max_ps((__m256)a.v, (__m256)b.v)); }
FCOS_INLINE bool any(Vec::Mask mask) { return _mm256_movemask_ps((__m256)mask.m) != 0; }
#else
FCOS_INLINE Vec fma(Vec a, Vec b, Vec c) { return a * b + c; }
FCOS_INLINE Vec sqrt(Vec x) {
  return map_lanes(x, [](float f) { return std::sqrt(f); });
}
FCOS_INLINE Vec min(Vec a, Vec b) { return select(a < b, a, b); }
FCOS_INLINE Vec max(Vec a, Vec b) { return select(a > b, a, b); }
FCOS_INLINE bool any(Vec::Mask mask) { return any_lane<Vec>(mask); }
#endif

#if FCOS_SIMD_BYTES != 64
FCOS_INLINE Vec reciprocal(Vec x) { return Vec(1.0f) / x; }
// Rounds to the nearest integer, for |x| < 2^22: at 1.5 * 2^23 a float has no fractional bits.
FCOS_INLINE Vec rounded(Vec x) { return (x + Vec(12582912.0f)) - Vec(12582912.0f); }
// x * 2^n for an integer n from -126 to 127.
FCOS_INLINE Vec times_power_of_two(Vec x, Vec n) {
  const IntLanes exponent = __builtin_convertvector(n.v, IntLanes) + 127;
  return x * Vec((FloatLanes)((UintLanes)exponent << 23));
}
#endif

// Two vectors processed in an interleaved manner to hide instruction latency. Twice<Twice<V>> is four.
template <class V>
struct Twice {
  using Real = typename V::Real;
  static constexpr int kLanes = 2 * V::kLanes;

  struct Mask {
    typename V::Mask a, b;
    FCOS_INLINE friend Mask operator&(Mask m, Mask n) { return {m.a & n.a, m.b & n.b}; }
  };

  V a, b;

  Twice() = default;
  FCOS_INLINE explicit Twice(Real x) : a(x), b(x) {}
  FCOS_INLINE Twice(V first, V second) : a(first), b(second) {}

  FCOS_INLINE friend Twice operator+(Twice x, Twice y) { return {x.a + y.a, x.b + y.b}; }
  FCOS_INLINE friend Twice operator-(Twice x, Twice y) { return {x.a - y.a, x.b - y.b}; }
  FCOS_INLINE friend Twice operator*(Twice x, Twice y) { return {x.a * y.a, x.b * y.b}; }
  FCOS_INLINE friend Twice operator/(Twice x, Twice y) { return {x.a / y.a, x.b / y.b}; }
  FCOS_INLINE friend Twice operator-(Twice x) { return {-x.a, -x.b}; }
  FCOS_INLINE friend Mask operator<(Twice x, Twice y) { return {x.a < y.a, x.b < y.b}; }
  FCOS_INLINE friend Mask operator>(Twice x, Twice y) { return {x.a > y.a, x.b > y.b}; }
  FCOS_INLINE friend Mask operator>=(Twice x, Twice y) { return {x.a >= y.a, x.b >= y.b}; }
  FCOS_INLINE friend Mask operator==(Twice x, Twice y) { return {x.a == y.a, x.b == y.b}; }
  FCOS_INLINE friend Twice select(Mask m, Twice x, Twice y) {
    return {select(m.a, x.a, y.a), select(m.b, x.b, y.b)};
  }
  FCOS_INLINE friend Twice abs(Twice x) { return {abs(x.a), abs(x.b)}; }
  FCOS_INLINE friend Twice reciprocal(Twice x) { return {reciprocal(x.a), reciprocal(x.b)}; }
  FCOS_INLINE friend Twice min(Twice x, Twice y) { return {min(x.a, y.a), min(x.b, y.b)}; }
  FCOS_INLINE friend Twice max(Twice x, Twice y) { return {max(x.a, y.a), max(x.b, y.b)}; }
  FCOS_INLINE friend Twice rounded(Twice x) { return {rounded(x.a), rounded(x.b)}; }
  FCOS_INLINE friend Twice times_power_of_two(Twice x, Twice n) {
    return {times_power_of_two(x.a, n.a), times_power_of_two(x.b, n.b)};
  }
  FCOS_INLINE friend Twice log_positive(Twice x) { return {log_positive(x.a), log_positive(x.b)}; }
  FCOS_INLINE friend Twice fma(Twice x, Twice y, Twice z) { return {fma(x.a, y.a, z.a), fma(x.b, y.b, z.b)}; }
  FCOS_INLINE friend Real sum(Twice x) { return sum(x.a + x.b); }
};

// The vector type of inner loops over elements of type T.
template <class T>
using wide_t = std::conditional_t<std::is_same_v<T, double>, VecDouble, Twice<Twice<Vec>>>;

// exp(-a) for a >= 0, as 2^n * 2^f with |f| <= 1/2. The result is at least about 2^-126.
template <class V>
FCOS_INLINE V exp_negative(V a) {
  const V bounded = min(V(87.3f), a);  // with this argument order NaN propagates
  const V log2e(-1.44269504f);
  const V n = rounded(bounded * log2e);
  const V f = fma(bounded, log2e, -n);
  const V f2 = f * f;
  const V c01 = fma(f, V(6.931470037e-01f), V(1.0f));
  const V c23 = fma(f, V(5.550733581e-02f), V(2.402224243e-01f));
  const V c45 = fma(f, V(1.326472731e-03f), V(9.671512991e-03f));
  const V s = fma(f2, fma(f2, c45, c23), c01);
  return times_power_of_two(s, n);
}
template <>
FCOS_INLINE VecDouble exp_negative(VecDouble x) {
  return map_lanes(x, [](double d) { return std::exp(-d); });
}

// log(w) for w > 0; w is clamped to the smallest normal number.
FCOS_INLINE Vec log_positive(Vec w) {
  const Vec x = select(w < Vec(1.17549435e-38f), Vec(1.17549435e-38f), w);  // NaN propagates
  // x = 2^k * m with m in [sqrt(1/2), sqrt(2))
  const UintLanes bits = (UintLanes)x.v + (0x3f800000u - 0x3f3504f3u);
  const IntLanes k = (IntLanes)(bits >> 23) - 127;
  const Vec m((FloatLanes)((bits & 0x007fffffu) + 0x3f3504f3u));
  const Vec t = m - Vec(1.0f);
  Vec s(-7.621018461e-02f);
  s = fma(s, t, Vec(1.290460806e-01f));
  s = fma(s, t, Vec(-1.324347626e-01f));
  s = fma(s, t, Vec(1.418184475e-01f));
  s = fma(s, t, Vec(-1.660901213e-01f));
  s = fma(s, t, Vec(2.000196794e-01f));
  s = fma(s, t, Vec(-2.500158656e-01f));
  s = fma(s, t, Vec(3.333332600e-01f));
  s = fma(s, t, Vec(-4.999998829e-01f));
  s = fma(s, t, Vec(1.0f));
  const Vec exponent(__builtin_convertvector(k, FloatLanes));
  const Vec result = fma(exponent, Vec(6.93147181e-1f), s * t);
  return select(x == x, result, x);
}

// atan2 on [-pi, pi]: the arc tangent of min / max of the absolute values, reflected into the right octant.
FCOS_INLINE Vec atan2(Vec y, Vec x) {
  const Vec zero(0.0f), ax = abs(x), ay = abs(y), longest = max(ax, ay);
  const Vec t = select(longest > zero, min(ax, ay) / longest, longest);
  const Vec s = t * t;
  constexpr float c[] = {2.920693019e-03f,  -1.636793092e-02f, 4.321186617e-02f,
                         -7.552214712e-02f, 1.066600457e-01f,  -1.421105564e-01f,
                         1.999377310e-01f,  -3.333315253e-01f, 1.0f};
  Vec p(c[0]);
  for (int i = 1; i < 9; ++i) p = fma(p, s, Vec(c[i]));
  Vec r = t * p;
  r = select(ay > ax, Vec(1.57079633f) - r, r);
  r = select(x < zero, Vec(3.14159265f) - r, r);
  return select(y < zero, -r, r);
}

// ---- load and store the first n lanes ----

template <int N, class T>
FCOS_INLINE void copy_lanes(T* to, const T* from, int n) {
  if (n == N) {
    std::memcpy(to, from, sizeof(T) * N);
#if FCOS_SIMD_BYTES == 64
  } else if constexpr (sizeof(T) == 4) {
    const auto mask = __mmask16((1u << n) - 1);
    _mm512_mask_storeu_epi32(to, mask, _mm512_maskz_loadu_epi32(mask, from));
  } else if constexpr (sizeof(T) == 2) {
    const auto mask = __mmask16((1u << n) - 1);
    _mm256_mask_storeu_epi16(to, mask, _mm256_maskz_loadu_epi16(mask, from));
#endif
  } else {
    for (int i = 0; i < n; ++i) to[i] = from[i];
  }
}

FCOS_INLINE Vec load(const float* p, int n) {
  FloatLanes v{};
  copy_lanes<kFloats>(reinterpret_cast<float*>(&v), p, n);
  return Vec(v);
}
FCOS_INLINE void store(float* p, Vec x, int n) {
  copy_lanes<kFloats>(p, reinterpret_cast<const float*>(&x.v), n);
}

FCOS_INLINE VecDouble load(const double* p, int n) {
  VecDouble::Reals v{};
  copy_lanes<VecDouble::kLanes>(reinterpret_cast<double*>(&v), p, n);
  return VecDouble(v);
}
FCOS_INLINE void store(double* p, VecDouble x, int n) {
  copy_lanes<VecDouble::kLanes>(p, reinterpret_cast<const double*>(&x.v), n);
}

template <class T>
FCOS_INLINE ShortLanes load_shorts(const T* p, int n) {
  ShortLanes s{};
  copy_lanes<kFloats>(reinterpret_cast<uint16_t*>(&s), reinterpret_cast<const uint16_t*>(p), n);
  return s;
}
template <class T>
FCOS_INLINE void store_shorts(T* p, ShortLanes s, int n) {
  copy_lanes<kFloats>(reinterpret_cast<uint16_t*>(p), reinterpret_cast<const uint16_t*>(&s), n);
}

FCOS_INLINE Vec load(const BFloat16* p, int n) {
  return Vec((FloatLanes)(__builtin_convertvector(load_shorts(p, n), UintLanes) << 16));
}
FCOS_INLINE void store(BFloat16* p, Vec x, int n) {
  const UintLanes u = (UintLanes)x.v;
  const UintLanes rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;  // to nearest, ties to even
  const IntLanes quiet_nan = IntLanes{} + 0x7fc0;
  const UintLanes kept = (UintLanes)((x.v == x.v) ? (IntLanes)rounded : quiet_nan);
  store_shorts(p, __builtin_convertvector(kept, ShortLanes), n);
}

#if FCOS_SIMD_BYTES == 64
FCOS_INLINE Vec widen_half(ShortLanes s) { return Vec((FloatLanes)_mm512_cvtph_ps((__m256i)s)); }
FCOS_INLINE ShortLanes narrow_half(Vec x) { return (ShortLanes)_mm512_cvtps_ph((__m512)x.v, 0); }
#elif FCOS_SIMD_BYTES == 32
FCOS_INLINE Vec widen_half(ShortLanes s) { return Vec((FloatLanes)_mm256_cvtph_ps((__m128i)s)); }
FCOS_INLINE ShortLanes narrow_half(Vec x) { return (ShortLanes)_mm256_cvtps_ph((__m256)x.v, 0); }
#else
FCOS_INLINE Vec widen_half(ShortLanes s) {
  Vec r;
  for (int i = 0; i < kFloats; ++i) r.v[i] = float(Half(s[i], Half::from_bits()));
  return r;
}
FCOS_INLINE ShortLanes narrow_half(Vec x) {
  ShortLanes s;
  for (int i = 0; i < kFloats; ++i) s[i] = Half(x.v[i]).x;
  return s;
}
#endif

FCOS_INLINE Vec load(const Half* p, int n) { return widen_half(load_shorts(p, n)); }
FCOS_INLINE void store(Half* p, Vec x, int n) { store_shorts(p, narrow_half(x), n); }

// 32-bit labels, in lanes of the width of V.
template <class V>
FCOS_INLINE typename V::Ints load_labels(const int32_t* p, int n) {
  typename V::Ints v{};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
template <>
FCOS_INLINE IntLanes load_labels<Vec>(const int32_t* p, int n) {
  IntLanes v{};
  copy_lanes<kFloats>(reinterpret_cast<int32_t*>(&v), p, n);
  return v;
}

// Loads and stores of a V. `n` is the number of lanes in use; a Twice always uses all lanes.
template <class V>
struct Lanes {
  template <class T>
  FCOS_INLINE static V load(const T* p, int n) {
    return FCOS_SIMD_NAMESPACE::load(p, n);
  }
  template <class T>
  FCOS_INLINE static void store(T* p, V x, int n) {
    FCOS_SIMD_NAMESPACE::store(p, x, n);
  }
  FCOS_INLINE static typename V::Mask equal(const int32_t* labels, int32_t label, int n) {
    return {load_labels<V>(labels, n) == label};
  }
};
template <class V>
struct Lanes<Twice<V>> {
  static constexpr int kHalf = V::kLanes;
  template <class T>
  FCOS_INLINE static Twice<V> load(const T* p, int) {
    return {Lanes<V>::load(p, kHalf), Lanes<V>::load(p + kHalf, kHalf)};
  }
  template <class T>
  FCOS_INLINE static void store(T* p, Twice<V> x, int) {
    Lanes<V>::store(p, x.a, kHalf);
    Lanes<V>::store(p + kHalf, x.b, kHalf);
  }
  FCOS_INLINE static typename Twice<V>::Mask equal(const int32_t* labels, int32_t label, int) {
    return {Lanes<V>::equal(labels, label, kHalf), Lanes<V>::equal(labels + kHalf, label, kHalf)};
  }
};

// Transposes rows of four numbers into one vector per column, and back.
template <class T, class V>
FCOS_INLINE void load_rows(const T* rows, int n, V columns[4]) {
  for (int c = 0; c < 4; ++c) columns[c] = V(0);
  for (int i = 0; i < n; ++i) {
    for (int c = 0; c < 4; ++c) columns[c].v[i] = typename V::Real(rows[4 * i + c]);
  }
}
template <class T, class V>
FCOS_INLINE void store_rows(T* rows, const V columns[4], int n) {
  for (int i = 0; i < n; ++i) {
    for (int c = 0; c < 4; ++c) rows[4 * i + c] = T(columns[c].v[i]);
  }
}

}  // namespace fcos_fast::FCOS_SIMD_NAMESPACE
