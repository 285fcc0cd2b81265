// Box losses of contiguous pairs.
#pragma once

#include "../math/box_loss.h"
#include "vec.h"

namespace fcos_fast::FCOS_SIMD_NAMESPACE {

template <class T, math::BoxLossKind Kind>
double box_loss_run(const BoxLossSpan& span, const BoxLossParameters& parameters) {
  const T* pred = static_cast<const T*>(span.pred);
  const T* target = static_cast<const T*>(span.target);
  T* grad = static_cast<T*>(span.grad);
  using V = vec_t<T>;
  using Real = typename V::Real;
  const Real* upstream = static_cast<const Real*>(span.upstream);
  Real* loss = static_cast<Real*>(span.loss);
  constexpr int kLanes = V::kLanes;
  const V smooth{Real(parameters.smooth)}, eps{Real(parameters.eps)}, scale{Real(span.scale)};
  double total = 0;
  for (int64_t i = 0; i < span.n; i += kLanes) {
    const int n = int(std::min<int64_t>(kLanes, span.n - i));
    V p[4], t[4];
    load_rows(pred + 4 * i, n, p);
    load_rows(target + 4 * i, n, t);
    if (parameters.ltrb) {
      p[0] = -p[0], p[1] = -p[1], t[0] = -t[0], t[1] = -t[1];
    }
    const math::BoxPair<V, Kind> pair(p, t, smooth, eps);
    if (grad != nullptr) {
      V out[4];
      pair.grad(upstream != nullptr ? load(upstream + i, n) : scale, out);
      if (parameters.ltrb) out[0] = -out[0], out[1] = -out[1];
      store_rows(grad + 4 * i, out, n);
    } else if (loss != nullptr) {
      store(loss + i, pair.loss(), n);
    } else {
      const V losses = pair.loss();
      for (int lane = 0; lane < n; ++lane) total += losses.v[lane];
    }
  }
  return total;
}

template <class T>
double box_loss_span(const BoxLossSpan& span, const BoxLossParameters& parameters) {
  using math::BoxLossKind;
  switch (parameters.kind) {
    case BoxLossKind::kIou:
      return box_loss_run<T, BoxLossKind::kIou>(span, parameters);
    case BoxLossKind::kLinearIou:
      return box_loss_run<T, BoxLossKind::kLinearIou>(span, parameters);
    case BoxLossKind::kGiou:
      return box_loss_run<T, BoxLossKind::kGiou>(span, parameters);
    case BoxLossKind::kDiou:
      return box_loss_run<T, BoxLossKind::kDiou>(span, parameters);
    case BoxLossKind::kCiou:
      return box_loss_run<T, BoxLossKind::kCiou>(span, parameters);
  }
  return 0;
}

}  // namespace fcos_fast::FCOS_SIMD_NAMESPACE
