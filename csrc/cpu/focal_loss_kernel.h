// Focal loss of contiguous elements.
#pragma once

#include "../math/focal_loss.h"
#include "vec.h"

namespace fcos_fast::FCOS_SIMD_NAMESPACE {

// Target policies: how to obtain the target of an element. evaluate() returns loss and gradient of lanes i .. i + n.
struct AllBackground {
  static constexpr bool kMayIgnore = false;
  template <class T, class V, class Form>
  FCOS_INLINE static math::LossAndGrad<V> evaluate(const FocalSpan&, const Form& form, V x, int64_t, int) {
    return form.background(x, form.negative_weight);
  }
};

struct OneClass {
  static constexpr bool kMayIgnore = true;
  template <class T, class V, class Form>
  FCOS_INLINE static math::LossAndGrad<V> evaluate(const FocalSpan& span, const Form& form, V x, int64_t i,
                                                   int n) {
    const int32_t* labels = span.labels + i;
    const auto foreground = Lanes<V>::equal(labels, span.label, n);
    const auto ignored = Lanes<V>::equal(labels, -2, n);
    const V weight = select(foreground, form.positive_weight, form.negative_weight);
    const auto at = form.background(select(foreground, -x, x), weight);
    const V zero(0);
    return {select(ignored, zero, at.loss), select(ignored, zero, select(foreground, -at.grad, at.grad))};
  }
};

struct Dense {
  static constexpr bool kMayIgnore = false;
  template <class T, class V, class Form>
  FCOS_INLINE static math::LossAndGrad<V> evaluate(const FocalSpan& span, const Form& form, V x, int64_t i,
                                                   int n) {
    return form.soft(x, Lanes<V>::load(static_cast<const T*>(span.targets) + i, n));
  }
};

// Returns the loss of lanes i .. i + n and stores the outputs that the span requests.
template <class T, class Target, class V, class Form>
FCOS_INLINE V focal_step(const FocalSpan& span, const Form& form, V scale, int64_t i, int n) {
  using Access = Lanes<V>;
  const V x = Access::load(static_cast<const T*>(span.x) + i, n);
  const auto at = Target::template evaluate<T>(span, form, x, i, n);
  if (span.loss != nullptr) Access::store(static_cast<T*>(span.loss) + i, at.loss, n);
  if (span.grad != nullptr) {
    const auto* upstream = static_cast<const T*>(span.upstream);
    const V flow = upstream != nullptr ? Access::load(upstream + i, n) : scale;
    V grad = at.grad * flow;
    // 0 even if the incoming gradient is not finite.
    if constexpr (Target::kMayIgnore) grad = select(at.grad == V(0), at.grad, grad);
    Access::store(static_cast<T*>(span.grad) + i, grad, n);
  }
  return at.loss;
}

// Prefetches data for some thousand cycles later. The hardware prefetcher stops at every 4 KiB page.
template <class T, int kLanes>
FCOS_INLINE void prefetch_ahead(const FocalSpan& span, int64_t i) {
  constexpr int64_t kAhead = 4096 / sizeof(T);
  for (int64_t k = 0; k < kLanes; k += 64 / int64_t(sizeof(T))) {
    __builtin_prefetch(static_cast<const T*>(span.x) + i + k + kAhead, 0);
    if (span.grad != nullptr) __builtin_prefetch(static_cast<T*>(span.grad) + i + k + kAhead, 1);
  }
}

template <class T, class Target, bool Sum, template <class> class Form>
double focal_pass(const FocalSpan& span, const FocalParameters& p) {
  using V = vec_t<T>;
  using Wide = wide_t<T>;
  constexpr int kLanes = V::kLanes, kWideLanes = Wide::kLanes;
  constexpr int64_t kBlock = 64 * kWideLanes;  // summed in float32 within a block, in float64 across blocks
  const Form<V> form(p, span.weight);
  const Form<Wide> wide_form(p, span.weight);
  const V scale{typename V::Real(span.scale)};
  const Wide wide_scale{typename V::Real(span.scale)};

  double total = 0;
  int64_t i = 0;
  while (i + kWideLanes <= span.n) {
    Wide block(0);
    const int64_t end = std::min(i + kBlock, span.n);
    for (; i + kWideLanes <= end; i += kWideLanes) {
      prefetch_ahead<T, kWideLanes>(span, i);
      const Wide losses = focal_step<T, Target>(span, wide_form, wide_scale, i, kWideLanes);
      if constexpr (Sum) block = block + losses;
    }
    if constexpr (Sum) total += sum(block);
  }
  for (; i < span.n; i += kLanes) {
    const int n = int(std::min<int64_t>(kLanes, span.n - i));
    const V losses = focal_step<T, Target>(span, form, scale, i, n);
    for (int lane = 0; Sum && lane < n; ++lane) total += losses.v[lane];
  }
  return total;
}

template <class T, class Target, template <class> class Form>
double focal_run(const FocalSpan& span, const FocalParameters& p) {
  return span.with_sum ? focal_pass<T, Target, true, Form>(span, p)
                       : focal_pass<T, Target, false, Form>(span, p);
}

template <class T, template <class> class Form>
double focal_with_target(const FocalSpan& span, const FocalParameters& p) {
  if (span.targets != nullptr) return focal_run<T, Dense, Form>(span, p);
  if (span.labels != nullptr) return focal_run<T, OneClass, Form>(span, p);
  return focal_run<T, AllBackground, Form>(span, p);
}

template <class V>
using FocalLossAny = math::FocalLoss<V, false>;

template <class T>
double focal_span(const FocalSpan& span, const FocalParameters& p) {
  if (p.star) return focal_with_target<T, math::FocalLossStar>(span, p);
  if (p.gamma == 2) return focal_with_target<T, math::FocalLossSquare>(span, p);
  return focal_with_target<T, FocalLossAny>(span, p);
}

}  // namespace fcos_fast::FCOS_SIMD_NAMESPACE
