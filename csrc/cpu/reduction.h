// Sums whose bits do not depend on the number of threads, and the gradient that flows into a loss.
#pragma once

#include <atomic>

#include "../tensor.h"

namespace fcos_fast {

// unit(u) for u in [0, units), on all threads; each takes the next unit when it is done with one.
template <class Unit>
void run_units(int64_t units, const Unit& unit) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(units, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t u = next++; u < units; u = next++) unit(u);
  });
}

// The results of the units are added in order.
template <class Unit>
double sum_units(int64_t units, const Unit& unit) {
  std::vector<double> partial(units);
  run_units(units, [&](int64_t u) { partial[u] = unit(u); });
  double total = 0;
  for (double p : partial) total += p;
  return total;
}

inline void write_scalar(Tensor& out, double value) {
  if (out.scalar_type() == ScalarType::Double) {
    *static_cast<double*>(out.mutable_data_ptr()) = value;
  } else {
    *static_cast<float*>(out.mutable_data_ptr()) = float(value);
  }
}

// A scalar gradient is that of a sum and goes to every element alike.
struct Upstream {
  Tensor tensor;
  const void* elements = nullptr;
  double scale = 0;
};

template <class Arrange>
Upstream upstream_of(const Tensor& grad, ScalarType dtype, const Arrange& arrange) {
  Upstream upstream;
  if (grad.dim() == 0) {
    upstream.tensor = converted(grad, ScalarType::Double);
    upstream.scale = *static_cast<const double*>(upstream.tensor.const_data_ptr());
  } else {
    upstream.tensor = arrange(converted(grad, dtype));
    upstream.elements = upstream.tensor.const_data_ptr();
  }
  return upstream;
}

}  // namespace fcos_fast
