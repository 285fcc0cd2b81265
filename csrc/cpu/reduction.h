// Sums whose bits do not depend on the number of threads, and the scalars that go into and out of a loss.
#pragma once

#include <atomic>

#include "../tensor.h"

namespace fcos_fast {

// The pointer `bytes` further on; null stays null.
inline const void* advance(const void* p, int64_t bytes) {
  return p == nullptr ? nullptr : static_cast<const char*>(p) + bytes;
}
inline void* advance(void* p, int64_t bytes) {
  return p == nullptr ? nullptr : static_cast<char*>(p) + bytes;
}

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

// The number that a scalar gradient has.
inline double read_scalar(const void* scale, Dtype dtype) {
  if (scale == nullptr) return 1;
  return dtype == Dtype::kFloat64 ? *static_cast<const double*>(scale) : *static_cast<const float*>(scale);
}

inline void write_scalar(void* out, Dtype dtype, double value) {
  if (dtype == Dtype::kFloat64) {
    *static_cast<double*>(out) = value;
  } else {
    *static_cast<float*>(out) = float(value);
  }
}

}  // namespace fcos_fast
