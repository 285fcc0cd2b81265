// Sums that are bitwise independent of the number of threads, and access to scalar inputs and outputs of a loss.
#pragma once

#include <atomic>

#include "../tensor.h"

namespace fcos_fast {

// p + bytes; null if p is null.
inline const void* advance(const void* p, int64_t bytes) {
  return p == nullptr ? nullptr : static_cast<const char*>(p) + bytes;
}
inline void* advance(void* p, int64_t bytes) {
  return p == nullptr ? nullptr : static_cast<char*>(p) + bytes;
}

// Calls unit(u) for u in [0, units) on all threads, with dynamic scheduling.
template <class Unit>
void run_units(int64_t units, const Unit& unit) {
  std::atomic<int64_t> next{0};
  const int64_t threads = std::min<int64_t>(units, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
    for (int64_t u = next++; u < units; u = next++) unit(u);
  });
}

// Adds up the results of the units in order.
template <class Unit>
double sum_units(int64_t units, const Unit& unit) {
  std::vector<double> partial(units);
  run_units(units, [&](int64_t u) { partial[u] = unit(u); });
  double total = 0;
  for (double p : partial) total += p;
  return total;
}

// Reads a scalar; 1 if the pointer is null.
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
