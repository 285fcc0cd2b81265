// The work of a focal loss, cut into units that may run in any order and on any thread.
#pragma once

#include "../focal_layout.h"
#include "kernels.h"

namespace fcos_fast {

// Elements per unit of work, about; fixed, so that sums do not depend on the threads.
constexpr int64_t kFocalBlock = 16384;

// The whole work; run() does a stretch of it.
struct FocalJob {
  FocalKernel kernel;
  FocalParameters parameters;
  int64_t element;  // bytes
  FocalSpan base;

  double run(int64_t begin, int64_t n, const int32_t* labels = nullptr, int32_t label = 0) const {
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
    return kernel(span, parameters);
  }
};

// Class targets, contiguous int32 or int64. What int32 cannot hold is background, not what its low bits say.
class ClassLabels {
 public:
  explicit ClassLabels(const int32_t* values) : narrow_(values) {}
  explicit ClassLabels(const Tensor& t) {
    if (t.scalar_type() == ScalarType::Int) {
      narrow_ = static_cast<const int32_t*>(t.const_data_ptr());
    } else {
      wide_ = static_cast<const int64_t*>(t.const_data_ptr());
    }
  }
  int32_t operator[](int64_t i) const {
    if (narrow_ != nullptr) return narrow_[i];
    return int32_t(wide_[i]) == wide_[i] ? int32_t(wide_[i]) : -1;
  }
  std::vector<int32_t> read(int64_t begin, int64_t n) const {
    std::vector<int32_t> values(n);
    for (int64_t i = 0; i < n; ++i) values[i] = (*this)[begin + i];
    return values;
  }

 private:
  const int32_t* narrow_ = nullptr;
  const int64_t* wide_ = nullptr;
};

// Nearly all elements are background: they run in long spans that ask for no label.
struct ClassFocalJob {
  FocalJob job;
  FocalLayout layout;
  ClassLabels labels;

  int64_t rows_per_unit() const {
    return std::max<int64_t>(1, kFocalBlock / std::max<int64_t>(1, layout.classes));
  }
  int64_t plane_block() const { return std::max<int64_t>(1024, rows_per_unit()); }
  int64_t blocks_per_plane() const { return (layout.inner + plane_block() - 1) / plane_block(); }

  int64_t count() const {
    if (layout.classes == 0) return 0;
    if (layout.inner != 1) return layout.outer * blocks_per_plane();
    return (layout.outer + rows_per_unit() - 1) / rows_per_unit();
  }
  double run(int64_t unit) const { return layout.inner == 1 ? run_rows(unit) : run_planes(unit); }

  double run_rows(int64_t unit) const {
    const int64_t classes = layout.classes;
    const int64_t first = unit * rows_per_unit(), last = std::min(first + rows_per_unit(), layout.outer);
    int64_t begin = first * classes;
    double total = 0;
    for (int64_t row = first; row < last; ++row) {
      const int32_t label = labels[row];
      const bool foreground = label >= 0 && label < classes;
      if (!foreground && label != -2) continue;
      const int64_t at = row * classes + (foreground ? label : 0);
      if (at > begin) total += job.run(begin, at - begin);
      if (foreground) {
        total += job.run(at, 1, &label, label);
        begin = at + 1;
      } else {
        const std::vector<int32_t> ignored(classes, -2);
        total += job.run(at, classes, ignored.data());
        begin = at + classes;
      }
    }
    if (last * classes > begin) total += job.run(begin, last * classes - begin);
    return total;
  }

  double run_planes(int64_t unit) const {
    const int64_t o = unit / blocks_per_plane(), i = (unit % blocks_per_plane()) * plane_block();
    const int64_t n = std::min(plane_block(), layout.inner - i);
    const auto own = labels.read(o * layout.inner + i, n);
    std::vector<uint8_t> has_label(layout.classes, 0);
    bool has_ignored = false;
    for (const int32_t label : own) {
      if (label >= 0 && label < layout.classes) has_label[label] = 1;
      has_ignored |= label == -2;
    }
    double total = 0;
    for (int64_t c = 0; c < layout.classes; ++c) {
      const int64_t begin = (o * layout.classes + c) * layout.inner + i;
      total += has_ignored || has_label[c] ? job.run(begin, n, own.data(), int32_t(c)) : job.run(begin, n);
    }
    return total;
  }
};

}  // namespace fcos_fast
