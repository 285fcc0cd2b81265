// Splits a focal loss into units of work that can run in any order, on any thread.
#pragma once

#include <algorithm>
#include <vector>

#include "../math/focal_loss.h"
#include "kernels.h"

namespace fcos_fast {

// Approximate number of elements per unit; fixed, so sums do not depend on the number of threads.
constexpr int64_t kFocalElements = 16384;

// The whole input; run() processes the n elements from `begin`.
struct FocalJob {
  FocalKernel kernel;
  FocalParameters parameters;
  int64_t element;  // size in bytes
  FocalSpan base;

  double run(int64_t begin, int64_t n, const int32_t* labels = nullptr, int32_t label = 0,
             double weight = 1) const {
    FocalSpan span = base;
    auto advance = [&](const void* p) { return p ? static_cast<const char*>(p) + begin * element : nullptr; };
    span.x = advance(base.x);
    span.targets = advance(base.targets);
    span.upstream = advance(base.upstream);
    span.loss = const_cast<char*>(advance(base.loss));
    span.grad = const_cast<char*>(advance(base.grad));
    span.n = n;
    span.labels = labels;
    span.label = label;
    span.weight = weight;
    return kernel(span, parameters);
  }
};

// Nearly all elements are background. They are processed in long spans without labels and of one weight.
struct ClassFocalJob {
  FocalJob job;
  int64_t outer, classes, inner;
  ClassLabels labels;             // (outer, inner)
  const void* weights = nullptr;  // (outer), float64 for float64 elements, else float32; only if inner is 1

  int64_t rows_per_unit() const {
    return std::max<int64_t>(1, kFocalElements / std::max<int64_t>(1, classes));
  }
  int64_t locations_per_unit() const { return std::max<int64_t>(1024, rows_per_unit()); }
  int64_t units_per_plane() const { return (inner + locations_per_unit() - 1) / locations_per_unit(); }

  int64_t count() const {
    if (classes == 0) return 0;
    if (inner != 1) return outer * units_per_plane();
    return (outer + rows_per_unit() - 1) / rows_per_unit();
  }
  double run(int64_t unit) const { return inner == 1 ? run_rows(unit) : run_planes(unit); }

  double run_rows(int64_t unit) const {
    const int64_t first = unit * rows_per_unit(), last = std::min(first + rows_per_unit(), outer);
    int64_t begin = first * classes;
    double total = 0, weight = weight_of(first);
    const auto background_until = [&](int64_t end) {
      if (end > begin) total += job.run(begin, end - begin, nullptr, 0, weight);
      begin = end;
    };
    for (int64_t row = first; row < last; ++row) {
      if (weights != nullptr && weight_of(row) != weight) {
        background_until(row * classes);
        weight = weight_of(row);
      }
      const int32_t label = labels[row];
      const bool foreground = label >= 0 && label < classes;
      if (!foreground && label != kIgnoredLabel) continue;
      background_until(row * classes + (foreground ? label : 0));
      if (foreground) {
        total += job.run(begin, 1, &label, label, weight);
        begin += 1;
      } else {
        const std::vector<int32_t> ignored(classes, kIgnoredLabel);
        total += job.run(begin, classes, ignored.data());
        begin += classes;
      }
    }
    background_until(last * classes);
    return total;
  }

  double weight_of(int64_t row) const {
    if (weights == nullptr) return 1;
    return job.element == sizeof(double) ? static_cast<const double*>(weights)[row]
                                         : static_cast<const float*>(weights)[row];
  }

  double run_planes(int64_t unit) const {
    const int64_t o = unit / units_per_plane(), i = (unit % units_per_plane()) * locations_per_unit();
    const int64_t n = std::min(locations_per_unit(), inner - i);
    std::vector<int32_t> own(n);
    for (int64_t k = 0; k < n; ++k) own[k] = labels[o * inner + i + k];
    std::vector<uint8_t> has_label(classes, 0);
    bool has_ignored = false;
    for (const int32_t label : own) {
      if (label >= 0 && label < classes) has_label[label] = 1;
      has_ignored |= label == kIgnoredLabel;
    }
    double total = 0;
    for (int64_t c = 0; c < classes; ++c) {
      const int64_t begin = (o * classes + c) * inner + i;
      total += has_ignored || has_label[c] ? job.run(begin, n, own.data(), int32_t(c)) : job.run(begin, n);
    }
    return total;
  }
};

}  // namespace fcos_fast
