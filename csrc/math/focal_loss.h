// Sigmoid focal loss (Lin et al. 2017): the loss of one logit and its derivative.
//
// sigmoid_focal_loss(inputs, targets, weight, alpha, gamma)
// sigmoid_focal_loss_star(inputs, targets, weight, gamma, beta)
//   inputs   (..., C) logits; float32, float64, bfloat16, float16; any strides
//   targets  dense: floating point, the shape of inputs; or classes: integer, inputs.shape[:-1],
//            0..C-1, -1 background, -2 ignored. Any other class counts as background.
//   weight   optional, with class targets: floating point, inputs.shape[:-1]; multiplies the losses of a row
//   result   loss of every element in the dtype of inputs; *_sum: their sum, float32 (float64 for float64), and its
//            gradient from the same pass if with_grad, else an empty tensor
//   gradient for inputs only; an ignored row has loss and gradient 0 for any logits
//   compute  in float32 (float64 for float64); sums are taken in float64 over blocks of fixed size, in order: the same
//            bits for any number of threads
//   special  with class targets an infinite logit has its limit (loss 0 or inf, gradient finite); with dense targets
//            0 * inf is NaN, as in torch; NaN propagates
#pragma once

#include "../device.h"
#include "../dtype.h"
#include "elementary.h"
#include "label.h"

namespace fcos_fast {

// Which of the two losses, and its parameters.
struct FocalParameters {
  bool star;
  double alpha, gamma, beta;
};

struct FocalLossWork {
  Dtype dtype;
  const void* x;  // n dense elements
  int64_t n;
  // One target per element, with the dtype and order of x; or the labels (outer, inner) of x (outer, classes, inner).
  const void* targets;
  ClassLabels labels;
  int64_t outer, classes, inner;
  // Weights (outer), float32 (float64 for float64), or null; then inner is 1.
  const void* weights;
  // Incoming gradient: one float32 number (float64 for float64), or n elements like x.
  const void* scale;
  const void* upstream;
  // Outputs, null if not needed: losses (like x), their sum (like `scale`), gradient (like x). Either one of them, or
  // the last two.
  void* loss;
  void* sum;
  void* grad;
};
void run_focal_loss(Cpu, const FocalParameters&, const FocalLossWork&);
void run_focal_loss(Cuda, const FocalParameters&, const FocalLossWork&);

}  // namespace fcos_fast

namespace fcos_fast::math {

template <class T>
struct LossAndGrad {
  T loss;
  T grad;  // d loss / d x
};

// From one exp: p = sigmoid(x), q = 1 - p without cancellation, log1p(exp(-|x|)).
template <class T>
struct Sigmoid {
  T p, q, log1p_exp;
};

template <class T>
FCOS_HOST_DEVICE Sigmoid<T> sigmoid(T x) {
  const T e = exp_negative(abs(x));
  const T r = reciprocal(T(1) + e);
  const T er = e * r;
  const auto positive = x >= T(0);
  return {select(positive, r, er), select(positive, er, r), log1p_unit(e)};
}

// Focal loss. `Square` is the usual gamma = 2, which needs no second exp.
template <class T, bool Square = false>
struct FocalLoss {
  T gamma;
  T positive_weight, negative_weight;  // alpha and 1 - alpha, or 1 and 1

  FCOS_HOST_DEVICE explicit FocalLoss(const FocalParameters& p, double weight = 1)
      : gamma(T(p.gamma)),
        positive_weight(T(weight * (p.alpha >= 0 ? p.alpha : 1))),
        negative_weight(T(weight * (p.alpha >= 0 ? 1 - p.alpha : 1))) {}

  // x as a background logit of this weight. For a foreground logit, pass -x and negate the gradient. A weight of 0
  // makes the loss 0 for any logit.
  FCOS_HOST_DEVICE LossAndGrad<T> background(T x, T weight) const {
    const auto s = sigmoid(x);
    const T softplus = max(x, T(0)) + s.log1p_exp;  // -log(1 - p)
    const T bounded = min(softplus, T(1e30f));      // avoids 0 * inf, which is not the limit
    T w;                                            // weight * p^gamma
    if (Square) {
      w = weight * s.p * s.p;
    } else {
      w = weight * exp_negative(gamma * min(max(-x, T(0)) + s.log1p_exp, T(1e30f)));
    }
    // If w is 0 so is the loss, even if softplus is infinite; a NaN is also in p.
    return {w * select(w == T(0), s.p, softplus), w * fma(gamma * s.q, bounded, s.p)};
  }

  // Any target y in [0, 1].
  FCOS_HOST_DEVICE LossAndGrad<T> soft(T x, T y) const {
    const auto s = sigmoid(x);
    const T cross_entropy = max(x, T(0)) - x * y + s.log1p_exp;
    const T wrong = s.p * (T(1) - y) + s.q * y;
    const T slope = s.p * s.q * (T(1) - T(2) * y);  // d wrong / d x
    const T weight = positive_weight * y + negative_weight * (T(1) - y);
    T w, dw;  // wrong^gamma and its derivative
    if (Square) {
      w = wrong * wrong;
      dw = T(2) * wrong * slope;
    } else {
      w = exp_negative(-gamma * log_positive(wrong));
      dw = select(wrong > T(0), gamma * w * slope / wrong, T(0));
    }
    const T bounded = min(cross_entropy, T(1e30f));
    return {weight * cross_entropy * w, weight * fma(s.p - y, w, bounded * dw)};
  }
};
template <class T>
using FocalLossSquare = FocalLoss<T, true>;

// FL*: -log(sigmoid(gamma * x_t + beta)) / gamma with x_t = x for foreground, -x for background.
template <class T>
struct FocalLossStar {
  T gamma, beta;
  T positive_weight, negative_weight;

  FCOS_HOST_DEVICE explicit FocalLossStar(const FocalParameters& p, double weight = 1)
      : gamma(T(p.gamma)), beta(T(p.beta)), positive_weight(T(weight)), negative_weight(T(weight)) {}

  FCOS_HOST_DEVICE LossAndGrad<T> of_logit(T z) const {  // z = -(gamma * x_t + beta)
    const auto s = sigmoid(z);
    return {(max(z, T(0)) + s.log1p_exp) / gamma, s.p};
  }
  FCOS_HOST_DEVICE LossAndGrad<T> background(T x, T weight) const {
    const auto at = of_logit(gamma * x - beta);
    return {weight * at.loss, weight * at.grad};
  }
  FCOS_HOST_DEVICE LossAndGrad<T> soft(T x, T y) const {
    const T direction = T(2) * y - T(1);
    const auto at = of_logit(-(gamma * (x * direction) + beta));
    return {at.loss, -direction * at.grad};
  }
};

}  // namespace fcos_fast::math
