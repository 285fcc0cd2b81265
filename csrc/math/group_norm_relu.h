// Group normalization (Wu and He, 2018) followed by ReLU, as one operator.
//
// group_norm_relu(x, weight, bias, num_groups, eps)
//   x          (B, C, ...); float32, float64, bfloat16, float16; NCHW and channels-last memory is read without a
//              copy (channels-last on CUDA only if C is a multiple of 4, up to 1024), other strides are copied
//   weight     (C,) of any of these dtypes, default 1; bias (C,) of any of these dtypes, default 0
//   y          max(0, (x - mean) * rstd * weight + bias), dtype and memory format of x; NaN propagates
//   mean, rstd (B, G) float32 (float64 for float64), over groups of C / G consecutive channels per image;
//              rstd = 1 / sqrt(variance + eps) with the variance over N, not N - 1
//   gradient   for x (dtype and memory format of x), weight and bias (their dtypes). The ReLU mask is recomputed from
//              x, not stored; a NaN argument passes the gradient, as in torch. No second derivative
//   statistics without cancellation: the mean of the first elements of a block is subtracted first. Blocks are merged
//              as in Chan, Golub and LeVeque (1979), in float64 on the CPU and float32 on CUDA
//   order      of every sum is fixed: the same bits for any number of threads
//   empty      if x is empty, so is y, and the gradients of weight and bias are 0
#pragma once

#include "../device.h"
#include "../dtype.h"
#include "elementary.h"

namespace fcos_fast {

// weight or bias, or its gradient: (C) in its own dtype; null data if it is absent.
template <class Data>
struct GroupNormParameter {
  Data* data;
  Dtype dtype;
};

// Input of forward and backward. "real" stands for float32 (float64 for float64 x).
struct GroupNormInput {
  Dtype dtype;
  int64_t batch, channels, spatial, groups;  // all positive
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
  const void* upstream;  // dtype and memory format of x
  const void* mean;      // (B, G) real
  const void* rstd;      // (B, G) real
  void* x;
  GroupNormParameter<void> weight, bias;
};
void run_group_norm_relu_backward(Cpu, const GroupNormInput&, const GroupNormGrad&);
void run_group_norm_relu_backward(Cuda, const GroupNormInput&, const GroupNormGrad&);

// Does the device read channels-last memory without a copy?
inline bool reads_channels_last(Cpu, int64_t) { return true; }
inline bool reads_channels_last(Cuda, int64_t channels) { return channels % 4 == 0 && channels <= 1024; }

}  // namespace fcos_fast

namespace fcos_fast::math {

// Mean of `count` numbers and the sum of their squared deviations from it.
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

// The per-group terms of dx = scale * g - offset - (x - mean) * slope, where g is the gradient that passed the ReLU.
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
