// Group normalisation (Wu and He, 2018) and the ReLU after it, as one operator.
//
// group_norm_relu(x, weight, bias, num_groups, eps)
//   x          (B, C, ...); float32, float64, bfloat16, float16; NCHW and channels-last memory is read in place (on
//              CUDA the latter if C is a multiple of 4, up to 1024), anything else through a contiguous copy
//   weight     (C,) of any of these types, or none for 1; bias likewise, or none for 0
//   y          max(0, (x - mean) * rstd * weight + bias), type and memory format of x; NaN stays NaN
//   mean, rstd (B, G) float32 (float64 for float64), of each image's C / G neighbouring channels;
//              rstd = 1 / sqrt(variance + eps) with the variance over N, not N - 1
//   gradient   to x (type and memory format of x), weight and bias (their types). Whether the ReLU lets a gradient
//              pass is computed again from x, not stored; where its argument is NaN it does, as in torch. A second
//              derivative is refused.
//   statistics never from a difference of large numbers: a few elements of a block give a number near its mean that is
//              subtracted first. Blocks are merged as Chan, Golub and LeVeque (1979) do, in float64 on the CPU, in
//              float32 on CUDA
//   order      of every sum is fixed: the same bits for any number of threads
//   empty      without an element there is nothing to normalise: y is empty, the gradients of weight and bias are 0
#pragma once

#include "../device.h"
#include "../dtype.h"
#include "elementary.h"

namespace fcos_fast {

// weight or bias, or the gradient of one, (C) of its own type; no data where there is none.
template <class Data>
struct GroupNormParameter {
  Data* data;
  Dtype dtype;
};

// What forward and backward read. Numbers called real are float32 (float64 for float64 x).
struct GroupNormInput {
  Dtype dtype;
  int64_t batch, channels, spatial, groups;  // none of them 0
  bool channels_last;                        // memory is (B, spatial, C), not (B, C, spatial)
  const void* x;
  GroupNormParameter<const void> weight, bias;

  int64_t group_channels() const { return channels / groups; }
};

struct GroupNormResult {
  double eps;
  void* y;
  void* mean;  // (B, G) real
  void* rstd;  // (B, G) real
};
void run_group_norm_relu(Cpu, const GroupNormInput&, const GroupNormResult&);
void run_group_norm_relu(Cuda, const GroupNormInput&, const GroupNormResult&);

struct GroupNormGrad {
  const void* upstream;  // of the type and memory format of x
  const void* mean;      // (B, G) real
  const void* rstd;      // (B, G) real
  void* x;
  GroupNormParameter<void> weight, bias;
};
void run_group_norm_relu_backward(Cpu, const GroupNormInput&, const GroupNormGrad&);
void run_group_norm_relu_backward(Cuda, const GroupNormInput&, const GroupNormGrad&);

// Does the device read channels-last memory in place?
inline bool reads_channels_last(Cpu, int64_t) { return true; }
inline bool reads_channels_last(Cuda, int64_t channels) { return channels % 4 == 0 && channels <= 1024; }

}  // namespace fcos_fast

namespace fcos_fast::math {

// Of `count` numbers: their mean, and the sum of their squared distances from it.
struct Moments {
  double count, mean, m2;
};

FCOS_HOST_DEVICE Moments merged(const Moments& a, const Moments& b) {
  const double count = a.count + b.count;
  if (!(count > 0)) return {0, 0, 0};
  const double share = b.count / count, step = b.mean - a.mean;
  return {count, a.mean + step * share, a.m2 + b.m2 + step * step * a.count * share};
}

FCOS_HOST_DEVICE double reciprocal_deviation(const Moments& m, double eps) {
  return m.count > 0 ? 1 / sqrt(m.m2 / m.count + eps) : 0;
}

// The argument of the ReLU. Forward and backward must call it with the same numbers.
template <class T>
FCOS_HOST_DEVICE T normalized(T centered, T scale, T shift) {
  return fma(centered, scale, shift);
}
template <class T>
FCOS_HOST_DEVICE T relu(T z) {
  return select(T(0) > z, T(0), z);
}
template <class T>
FCOS_HOST_DEVICE T relu_grad(T z, T upstream) {
  return select(T(0) >= z, T(0), upstream);
}

// What the gradient of x takes from a whole group: dx = scale * g - offset - (x - mean) * slope, where g is the
// gradient behind the ReLU.
template <class Real>
struct GroupGradient {
  Real offset, slope;
};

// From the sums of weight * g and of weight * g * (x - mean) over the `count` elements of the group.
template <class Real>
FCOS_HOST_DEVICE GroupGradient<Real> group_gradient(Real sum, Real centered_sum, Real count, Real rstd) {
  return {rstd * sum / count, rstd * rstd * (rstd * centered_sum / count)};
}

}  // namespace fcos_fast::math
