// The focal loss of background logits, which are nearly all logits of a detector.
#pragma once

#include <cuda_runtime.h>

#include "../dtype.h"
#include "../math/focal_loss.h"

namespace fcos_fast {

// loss = weight * modulation * cross_entropy, d loss / d x = weight * modulation * slope.
struct FocalTerms {
  float modulation, cross_entropy, slope;
};

// Works for any loss. A foreground logit x has the loss of -x as background.
template <class T, class Form>
struct Background {
  Form form;

  __device__ __forceinline__ FocalTerms operator()(float x) const {
    const auto at = form.background(x, 1.0f);
    return {1.0f, at.loss, at.grad};
  }
};

// gamma = 2, to float32 accuracy.
template <>
struct Background<float, math::FocalLossSquare<float>> {
  math::FocalLossSquare<float> form;

  __device__ __forceinline__ FocalTerms operator()(float x) const {
    const auto s = math::sigmoid(x);
    const float softplus = fmaxf(x, 0.0f) + s.log1p_exp;
    const float bounded = fminf(softplus, 1e30f);  // avoids q * inf, which is not the limit
    return {s.p * s.p, softplus, math::fma(2.0f, s.q * bounded, s.p)};
  }
};

// gamma = 2, to 7e-6, far below the rounding error of 16-bit types. p is the sigmoid, q = 1 - p, and with u = min(p, q)
// softplus(x) = max(x, 0) - log(1 - u). A NaN propagates through p. An infinite loss becomes the greatest finite
// number.
template <class T>
struct Background<T, math::FocalLossSquare<float>> {
  math::FocalLossSquare<float> form;

  __device__ __forceinline__ FocalTerms operator()(float x) const {
    // -log(1 - u) / u on [0, 0.5]: minimax fit of the relative error.
    constexpr float c[] = {0.99999351f, 0.50089545f, 0.3136711f, 0.40336279f, -0.31109385f, 0.84637986f};
    const float p = math::reciprocal(1.0f + math::exp_negative(x));
    const float q = 1.0f - p, u = fminf(p, q);
    float series = c[5];
#pragma unroll
    for (int i = 4; i >= 0; --i) series = math::fma(series, u, c[i]);
    const float softplus = math::fma(series, u, clamp_positive(x));
    return {p * p, softplus, math::fma(2.0f, q * softplus, p)};
  }

  // min(max(x, 0), greatest number) in one instruction: positive floats are ordered like their bits.
  __device__ __forceinline__ static float clamp_positive(float x) {
    return __int_as_float(__vimin_s32_relu(__float_as_int(x), 0x7f7fffff));
  }
};

}  // namespace fcos_fast
