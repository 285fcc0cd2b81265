// The passes of group_norm_relu over rows of `columns` numbers. Each column has its own parameters.
#pragma once

#include "../math/group_norm_relu.h"
#include "vec.h"

namespace fcos_fast::FCOS_SIMD_NAMESPACE {

template <int Rows>
using RowCount = std::integral_constant<int, Rows>;

template <class V, int Rows, class F>
FCOS_INLINE void visit_columns(int64_t at, int64_t width, const F& f) {
  int64_t c = 0;
  for (; c + V::kLanes <= width; c += V::kLanes) f(at + c, c, RowCount<Rows>(), V::kLanes);
  if (c < width) f(at + c, c, RowCount<Rows>(), int(width - c));
}

// Calls f(position, column, rows, lanes) to cover n numbers: each call gets `lanes` adjacent columns of `rows` rows.
template <class V, int kRows = 4, class F>
FCOS_INLINE void visit(int64_t n, int64_t columns, const F& f) {
  int64_t at = 0;
  for (; at + kRows * columns <= n; at += kRows * columns) visit_columns<V, kRows>(at, columns, f);
  for (; at < n; at += columns) visit_columns<V, 1>(at, std::min(columns, n - at), f);
}

template <class V>
FCOS_INLINE void add_to(typename V::Real* sums, V x, int lanes) {
  store(sums, load(sums, lanes) + x, lanes);
}

template <class Real>
double sum_of(const Real* p, int64_t n) {
  double parts[4] = {0, 0, 0, 0};  // four independent sums, to hide the latency of an addition
  int64_t i = 0;
  for (; i + 4 <= n; i += 4) {
    for (int k = 0; k < 4; ++k) parts[k] += double(p[i + k]);
  }
  for (; i < n; ++i) parts[0] += double(p[i]);
  return (parts[0] + parts[1]) + (parts[2] + parts[3]);
}

// The mean of the first k of n rows is subtracted first to avoid cancellation: the squared distance of the two means is
// at most n / k times the variance.
template <class T>
void group_norm_moments(const GroupNormSpan& span, int64_t width, math::Moments* moments) {
  using V = vec_t<T>;
  using Real = typename V::Real;
  const T* x = static_cast<const T*>(span.x);
  const int64_t columns = span.columns, groups = columns / width;
  Real* near = static_cast<Real*>(span.scratch);
  Real* sums = near + columns;
  Real* squares = sums + columns;
  std::fill(near, near + 3 * columns, Real(0));

  const int64_t rows = span.n / columns;
  const int64_t head = rows > 0 ? (rows + 7) / 8 * columns : span.n;
  visit<V>(head, columns, [&](int64_t at, int64_t c, auto rows, int lanes) FCOS_LAMBDA {
    V total(Real(0));
    for (int r = 0; r < rows; ++r) total = total + load(x + at + r * columns, lanes);
    add_to(near + c, total, lanes);
  });
  for (int64_t g = 0; g < groups; ++g) {
    Real* own = near + g * width;
    std::fill(own, own + width, Real(sum_of(own, width) / double(head / groups)));
  }

  visit<V>(span.n, columns, [&](int64_t at, int64_t c, auto rows, int lanes) FCOS_LAMBDA {
    const V center = load(near + c, lanes);
    V sum(Real(0)), square(Real(0));
    for (int r = 0; r < rows; ++r) {
      const V d = load(x + at + r * columns, lanes) - center;
      sum = sum + d;
      square = fma(d, d, square);
    }
    add_to(sums + c, sum, lanes);
    add_to(squares + c, square, lanes);
  });
  const double count = double(span.n / groups);
  for (int64_t g = 0; g < groups; ++g) {
    const double sum = sum_of(sums + g * width, width), square = sum_of(squares + g * width, width);
    const double m2 = square - sum * sum / count;
    moments[g] = {count, double(near[g * width]) + sum / count, m2 < 0 ? 0 : m2};
  }
}

// The parameters of adjacent columns.
template <class V>
struct NormColumns {
  V mean, scale, shift;

  FCOS_INLINE NormColumns(const GroupNormSpan& span, int64_t c, int lanes)
      : mean(column(span.mean, c, lanes)),
        scale(column(span.scale, c, lanes)),
        shift(column(span.shift, c, lanes)) {}

  static FCOS_INLINE V column(const void* numbers, int64_t c, int lanes) {
    return load(static_cast<const typename V::Real*>(numbers) + c, lanes);
  }
  FCOS_INLINE V through_relu(V centered, V upstream) const {
    return math::relu_grad(math::normalized(centered, scale, shift), upstream);
  }
};

template <class T>
void group_norm_apply(const GroupNormSpan& span) {
  using V = vec_t<T>;
  const T* x = static_cast<const T*>(span.x);
  T* y = static_cast<T*>(span.out);
  visit<V, 1>(span.n, span.columns, [&](int64_t at, int64_t c, auto rows, int lanes) FCOS_LAMBDA {
    const NormColumns<V> own(span, c, lanes);
    for (int r = 0; r < rows; ++r) {
      const int64_t i = at + r * span.columns;
      store(y + i, math::relu(math::normalized(load(x + i, lanes) - own.mean, own.scale, own.shift)), lanes);
    }
  });
}

template <class T>
void group_norm_grad_sums(const GroupNormSpan& span, int64_t width, double* all_sums, double* all_centered) {
  using V = vec_t<T>;
  using Real = typename V::Real;
  const T* x = static_cast<const T*>(span.x);
  const T* grad = static_cast<const T*>(span.grad);
  Real* sums = static_cast<Real*>(span.scratch);
  Real* centered_sums = sums + span.columns;
  std::fill(sums, sums + 2 * span.columns, Real(0));
  visit<V>(span.n, span.columns, [&](int64_t at, int64_t c, auto rows, int lanes) FCOS_LAMBDA {
    const NormColumns<V> own(span, c, lanes);
    V sum(Real(0)), centered_sum(Real(0));
    for (int r = 0; r < rows; ++r) {
      const int64_t i = at + r * span.columns;
      const V centered = load(x + i, lanes) - own.mean;
      const V g = own.through_relu(centered, load(grad + i, lanes));
      sum = sum + g;
      centered_sum = fma(g, centered, centered_sum);
    }
    add_to(sums + c, sum, lanes);
    add_to(centered_sums + c, centered_sum, lanes);
  });
  for (int64_t k = 0; k < span.columns / width; ++k) {
    all_sums[k] += sum_of(sums + k * width, width);
    all_centered[k] += sum_of(centered_sums + k * width, width);
  }
}

template <class T>
void group_norm_grad_apply(const GroupNormSpan& span) {
  using V = vec_t<T>;
  const T* x = static_cast<const T*>(span.x);
  const T* grad = static_cast<const T*>(span.grad);
  T* out = static_cast<T*>(span.out);
  visit<V, 1>(span.n, span.columns, [&](int64_t at, int64_t c, auto rows, int lanes) FCOS_LAMBDA {
    const NormColumns<V> own(span, c, lanes);
    const V offset = own.column(span.offset, c, lanes), slope = own.column(span.slope, c, lanes);
    for (int r = 0; r < rows; ++r) {
      const int64_t i = at + r * span.columns;
      const V centered = load(x + i, lanes) - own.mean;
      const V g = own.through_relu(centered, load(grad + i, lanes));
      store(out + i, fma(own.scale, g, -fma(centered, slope, offset)), lanes);
    }
  });
}

template <class T>
constexpr GroupNormKernels group_norm_kernels() {
  return {group_norm_moments<T>, group_norm_apply<T>, group_norm_grad_sums<T>, group_norm_grad_apply<T>};
}

}  // namespace fcos_fast::FCOS_SIMD_NAMESPACE
