// Focal loss over elements that lie one after the other.
#pragma once

#include "../math/focal_loss.h"
#include "vec.h"

namespace fcos_fast::FCOS_SIMD_NAMESPACE {

// Where an element's target comes from.
struct AllBackground {
  template <class T, class V, class Form>
  FCOS_INLINE static math::LossAndGrad<V> evaluate(const FocalSpan&, const Form& form, V x, int64_t, int) {
    auto at = form.background(x);
    return {form.negative_weight * at.loss, form.negative_weight * at.grad};
  }
};

struct OneClass {
  template <class T, class V, class Form>
  FCOS_INLINE static math::LossAndGrad<V> evaluate(const FocalSpan& span, const Form& form, V x, int64_t i,
                                                   int n) {
    const auto labels = load_labels<V>(span.labels + i, n);
    const typename V::Mask foreground{labels == span.label};
    const typename V::Mask ignored{labels == -2};
    const auto at = form.background(select(foreground, -x, x));
    const V weight = select(foreground, form.positive_weight, form.negative_weight);
    const V loss = weight * at.loss;
    const V grad = weight * at.grad;
    const V zero(0);
    return {select(ignored, zero, loss), select(ignored, zero, select(foreground, -grad, grad))};
  }
};

struct Dense {
  template <class T, class V, class Form>
  FCOS_INLINE static math::LossAndGrad<V> evaluate(const FocalSpan& span, const Form& form, V x, int64_t i,
                                                   int n) {
    return form.soft(x, load(static_cast<const T*>(span.targets) + i, n));
  }
};

template <class T, class Target, bool Sum, class Form>
double focal_pass(const FocalSpan& span, const Form& form) {
  using V = vec_t<T>;
  using Real = typename V::Real;
  constexpr int kLanes = V::kLanes;
  constexpr int64_t kBlock = 64 * kLanes;  // float32 inside a block, float64 from block to block
  const T* x = static_cast<const T*>(span.x);
  const T* upstream = static_cast<const T*>(span.upstream);
  T* loss = static_cast<T*>(span.loss);
  T* grad = static_cast<T*>(span.grad);
  const V scale(Real(span.scale));

  auto step = [&](int64_t i, int n) {
    const auto at = Target::template evaluate<T>(span, form, load(x + i, n), i, n);
    if (loss != nullptr) store(loss + i, at.loss, n);
    if (grad != nullptr) {
      // An ignored element stays 0 whatever flows in; elsewhere this is a plain product.
      const V flow = upstream != nullptr ? load(upstream + i, n) : scale;
      store(grad + i, select(at.grad == V(0), at.grad, at.grad * flow), n);
    }
    return at.loss;
  };
  double total = 0;
  for (int64_t begin = 0; begin < span.n; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, span.n);
    V block(0);
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      const V losses = step(i, kLanes);
      if constexpr (Sum) block = block + losses;
    }
    if (i < end) {
      const int n = int(end - i);
      const V losses = step(i, n);
      for (int lane = 0; Sum && lane < n; ++lane) total += losses.v[lane];
    }
    if constexpr (Sum) total += sum(block);
  }
  return total;
}

template <class T, class Target, class Form>
double focal_run(const FocalSpan& span, const Form& form) {
  return span.with_sum ? focal_pass<T, Target, true>(span, form) : focal_pass<T, Target, false>(span, form);
}

template <class T, class Form>
double focal_with_target(const FocalSpan& span, const Form& form) {
  if (span.targets != nullptr) return focal_run<T, Dense>(span, form);
  if (span.labels != nullptr) return focal_run<T, OneClass>(span, form);
  return focal_run<T, AllBackground>(span, form);
}

template <class T>
double focal_span(const FocalSpan& span, const FocalParameters& p) {
  using V = vec_t<T>;
  using Real = typename V::Real;
  const V gamma{Real(p.gamma)}, one(1);
  if (p.star) return focal_with_target<T>(span, math::FocalLossStar<V>{gamma, V(Real(p.beta)), one, one});
  const V positive = p.alpha >= 0 ? V(Real(p.alpha)) : one;
  const V negative = p.alpha >= 0 ? V(Real(1 - p.alpha)) : one;
  if (p.gamma == 2) return focal_with_target<T>(span, math::FocalLoss<V, true>{gamma, positive, negative});
  return focal_with_target<T>(span, math::FocalLoss<V, false>{gamma, positive, negative});
}

}  // namespace fcos_fast::FCOS_SIMD_NAMESPACE
