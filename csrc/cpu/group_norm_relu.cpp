// Two passes in forward, two in backward. Each problem (an image in channels-last memory, a group of an image in NCHW
// memory) is finished before the next one starts, so that the second pass reads from cache.
#include "../math/group_norm_relu.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <type_traits>
#include <vector>

#include "../math/element.h"
#include "kernels.h"

namespace fcos_fast {
namespace {

using math::Moments;
using GroupGradient = math::GroupGradient<double>;

// The split does not depend on the number of threads, so the order of every sum is fixed.
constexpr int64_t kRowsPerPiece = 128;
constexpr int64_t kPiecesPerUnit = 4;
constexpr int64_t kColumnsOfChannel = 64;  // in NCHW memory, a channel is split into rows of this length

// A problem is a contiguous range of memory whose groups are independent of the rest: an image, or in NCHW memory a
// group of an image. It consists of runs: a single run with the channels as columns, or in NCHW memory one run per
// channel.
struct Division {
  bool channels_last;
  int64_t problems, channels, groups;  // channels and groups of each problem
  int64_t runs, run_size, columns;
  int64_t piece_size, unit_size, units_per_run;

  // For empty tensors there are no problems, or problems without units.
  explicit Division(const GroupNormInput& l) : channels_last(l.channels_last) {
    channels = std::max<int64_t>(1, channels_last ? l.channels : l.group_channels());
    groups = channels_last ? l.groups : 1;
    problems = l.batch * l.channels / channels;
    runs = channels_last ? 1 : channels;
    run_size = channels_last ? channels * l.spatial : l.spatial;
    columns = channels_last ? channels : std::clamp<int64_t>(l.spatial, 1, kColumnsOfChannel);
    piece_size = kRowsPerPiece * columns;
    unit_size = kPiecesPerUnit * piece_size;
    units_per_run = (run_size + unit_size - 1) / unit_size;
  }

  int64_t units() const { return runs * units_per_run; }
  int64_t channels_per_run() const { return channels / runs; }
  int64_t columns_per_channel() const { return columns / channels_per_run(); }
  int64_t group_of(int64_t channel) const { return channel / (channels / groups); }
};

// Calls f(i) for i in [0, n) on all threads.
template <class F>
void in_parallel(int64_t n, const F& f) {
  torch::stable::parallel_for(0, n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
}

// weight or bias in the type of the computation; empty if absent.
template <class Real>
std::vector<Real> numbers_of(const GroupNormParameter<const void>& parameter, int64_t channels) {
  std::vector<Real> numbers(parameter.data == nullptr ? 0 : channels);
  for (size_t c = 0; c < numbers.size(); ++c) {
    numbers[c] = math::read_element<Real>(parameter.data, parameter.dtype, c);
  }
  return numbers;
}

// Real is float (double for float64 elements).
template <class Real>
struct GroupNorm {
  Division d;
  GroupNormKernels kernels;
  int64_t image_channels, element;  // element: size in bytes
  const char* x;
  const char* grad;
  char* out;                       // y, or the gradient of x
  std::vector<Real> weight, bias;  // (C,) or empty
  const Real* mean = nullptr;      // (B, G), viewed as (problems, groups)
  const Real* rstd = nullptr;
  std::vector<double> sums,
      centered_sums;  // (B, C), viewed as (problems, channels): of g and of g * (x - mean)

  GroupNorm(const GroupNormInput& in, const void* grad, void* out)
      : d(in),
        kernels(fcos_fast::kernels(in.dtype).group_norm_relu),
        image_channels(in.channels),
        element(size_of(in.dtype)),
        x(static_cast<const char*>(in.x)),
        grad(static_cast<const char*>(grad)),
        out(static_cast<char*>(out)),
        weight(numbers_of<Real>(in.weight, in.channels)),
        bias(numbers_of<Real>(in.bias, in.channels)) {}

  // One number per run and column.
  struct Columns {
    std::vector<Real> mean, scale, shift, offset, slope;
  };

  template <class F>
  void for_each_problem(const F& f) const {
    // Many problems: one thread each. Few problems: all threads on one at a time, so that only one occupies the caches.
    if (d.problems >= 4 * int64_t(torch::stable::get_num_threads())) return in_parallel(d.problems, f);
    for (int64_t p = 0; p < d.problems; ++p) f(p);
  }

  // f(span) for each piece of a unit of a problem.
  template <class F>
  void for_each_piece(int64_t problem, int64_t unit, const Columns& columns, const F& f) const {
    const int64_t run = unit / d.units_per_run;
    const int64_t begin = (unit - run * d.units_per_run) * d.unit_size;
    const int64_t end = std::min(d.run_size, begin + d.unit_size);
    std::vector<Real> scratch(3 * d.columns);
    auto own = [&](const std::vector<Real>& numbers) {
      return numbers.empty() ? nullptr : numbers.data() + run * d.columns;
    };
    for (int64_t at = begin; at < end; at += d.piece_size) {
      const int64_t offset = ((problem * d.runs + run) * d.run_size + at) * element;
      GroupNormSpan span{};
      span.x = x + offset;
      if (grad != nullptr) span.grad = grad + offset;
      if (out != nullptr) span.out = out + offset;
      span.n = std::min(d.piece_size, end - at);
      span.columns = d.columns;
      span.scratch = scratch.data();
      span.mean = own(columns.mean), span.scale = own(columns.scale), span.shift = own(columns.shift);
      span.offset = own(columns.offset), span.slope = own(columns.slope);
      f(span);
    }
  }

  // Repeats of(channel of the problem) for each column of the channel.
  template <class F>
  std::vector<Real> spread(const F& of) const {
    std::vector<Real> numbers;
    for (int64_t c = 0; c < d.channels; ++c) {
      numbers.insert(numbers.end(), d.columns_per_channel(), of(c));
    }
    return numbers;
  }

  Real parameter_of(int64_t problem, int64_t channel, const std::vector<Real>& parameter, Real absent) const {
    return parameter.empty() ? absent : parameter[(problem * d.channels + channel) % image_channels];
  }

  Columns columns_of(int64_t problem) const {
    auto group = [&](int64_t c) { return problem * d.groups + d.group_of(c); };
    Columns columns;
    columns.mean = spread([&](int64_t c) { return mean[group(c)]; });
    columns.scale = spread([&](int64_t c) { return rstd[group(c)] * parameter_of(problem, c, weight, 1); });
    columns.shift = spread([&](int64_t c) { return parameter_of(problem, c, bias, 0); });
    return columns;
  }

  void measure(int64_t problem, const GroupNormResult& result) const {
    std::vector<Moments> of_units(d.units() * d.groups, Moments{0, 0, 0});
    in_parallel(d.units(), [&](int64_t unit) {
      std::vector<Moments> of_piece(d.groups);
      Moments* own = &of_units[unit * d.groups];
      for_each_piece(problem, unit, {}, [&](const GroupNormSpan& span) {
        kernels.moments(span, d.columns / d.groups, of_piece.data());
        for (int64_t g = 0; g < d.groups; ++g) own[g] = merged(own[g], of_piece[g]);
      });
    });
    for (int64_t g = 0; g < d.groups; ++g) {
      Moments all{0, 0, 0};
      for (int64_t unit = 0; unit < d.units(); ++unit) all = merged(all, of_units[unit * d.groups + g]);
      static_cast<Real*>(result.mean)[problem * d.groups + g] = Real(all.mean);
      static_cast<Real*>(result.rstd)[problem * d.groups + g] =
          Real(math::reciprocal_deviation(all, result.eps));
    }
  }

  void apply(int64_t problem, const Columns& columns, void (*kernel)(const GroupNormSpan&)) const {
    torch::stable::parallel_for(0, d.units(), 1, [&](int64_t begin, int64_t end) {
      // In reverse: what was read last is most likely still in cache.
      for (int64_t unit = end - 1; unit >= begin; --unit) for_each_piece(problem, unit, columns, kernel);
    });
  }

  void forward(const GroupNormResult& result) {
    mean = static_cast<const Real*>(result.mean);
    rstd = static_cast<const Real*>(result.rstd);
    for_each_problem([&](int64_t problem) {
      measure(problem, result);
      apply(problem, columns_of(problem), kernels.apply);
    });
  }

  void add_gradients(int64_t problem, const Columns& columns) {
    const int64_t each = d.channels_per_run(), width = d.columns_per_channel();
    std::vector<double> of_units(2 * d.units() * each);
    in_parallel(d.units(), [&](int64_t unit) {
      double* own = &of_units[2 * unit * each];
      for_each_piece(problem, unit, columns,
                     [&](const GroupNormSpan& span) { kernels.grad_sums(span, width, own, own + each); });
    });
    for (int64_t unit = 0; unit < d.units(); ++unit) {
      const double* own = &of_units[2 * unit * each];
      const int64_t first = problem * d.channels + unit / d.units_per_run * each;
      for (int64_t c = 0; c < each; ++c) {
        sums[first + c] += own[c];
        centered_sums[first + c] += own[each + c];
      }
    }
  }

  std::vector<GroupGradient> group_gradients(int64_t problem) const {
    std::vector<GroupGradient> gradients;
    const int64_t channels = d.channels / d.groups;
    for (int64_t g = 0; g < d.groups; ++g) {
      double sum = 0, centered_sum = 0;
      for (int64_t c = g * channels; c < (g + 1) * channels; ++c) {
        const double w = parameter_of(problem, c, weight, 1);
        sum += w * sums[problem * d.channels + c];
        centered_sum += w * centered_sums[problem * d.channels + c];
      }
      const double count = double(d.runs * d.run_size / d.groups);
      gradients.push_back(
          math::group_gradient(sum, centered_sum, count, double(rstd[problem * d.groups + g])));
    }
    return gradients;
  }

  void backward(const GroupNormGrad& gradient) {
    mean = static_cast<const Real*>(gradient.mean);
    rstd = static_cast<const Real*>(gradient.rstd);
    sums.assign(d.problems * d.channels, 0);
    centered_sums.assign(d.problems * d.channels, 0);
    for_each_problem([&](int64_t problem) {
      Columns columns = columns_of(problem);
      add_gradients(problem, columns);
      const auto gradients = group_gradients(problem);
      columns.offset = spread([&](int64_t c) { return Real(gradients[d.group_of(c)].offset); });
      columns.slope = spread([&](int64_t c) { return Real(gradients[d.group_of(c)].slope); });
      apply(problem, columns, kernels.grad_apply);
    });
  }

  // (B, C) sums of g * (x - mean) * rstd, whose sum over the batch is the gradient of weight.
  std::vector<double> normalized_sums() const {
    std::vector<double> result(centered_sums);
    const int64_t channels = d.channels / d.groups;
    for (size_t i = 0; i < result.size(); ++i) result[i] *= double(rstd[i / channels]);
    return result;
  }
};

// Writes the sum over the batch: (B, C) to (C,).
template <class Real>
void write_gradient(const GroupNormParameter<void>& gradient, int64_t batch, int64_t channels,
                    const std::vector<double>& sums) {
  if (gradient.data == nullptr) return;
  for (int64_t c = 0; c < channels; ++c) {
    double total = 0;
    for (int64_t b = 0; b < batch; ++b) total += sums[b * channels + c];
    math::write_element(gradient.data, gradient.dtype, c, Real(total));
  }
}

// f(float()), or f(double()) for float64.
template <class F>
void dispatch_real(Dtype dtype, const F& f) {
  if (dtype == Dtype::kFloat64) return f(double());
  f(float());
}

}  // namespace

void run_group_norm_relu(Cpu, const GroupNormInput& in, const GroupNormResult& result) {
  dispatch_real(in.dtype, [&](auto real) {
    using Real = decltype(real);
    GroupNorm<Real> norm(in, nullptr, result.y);
    norm.forward(result);
  });
}

void run_group_norm_relu_backward(Cpu, const GroupNormInput& in, const GroupNormGrad& grad) {
  dispatch_real(in.dtype, [&](auto real) {
    using Real = decltype(real);
    GroupNorm<Real> norm(in, grad.upstream, grad.x);
    norm.backward(grad);
    write_gradient<Real>(grad.bias, in.batch, in.channels, norm.sums);
    write_gradient<Real>(grad.weight, in.batch, in.channels, norm.normalized_sums());
  });
}

}  // namespace fcos_fast
