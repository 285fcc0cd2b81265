// Two passes forward, two backward. An image in channels-last memory, or a group of an image in NCHW memory, is
// finished before the next one is begun, so that the second pass finds in a cache what the first has read.
#include "../group_norm_layout.h"
#include "kernels.h"

namespace fcos_fast {
namespace {

using math::GroupGradient;
using math::Moments;

// Work is cut without a look at the number of threads: the order of every sum depends on it.
constexpr int64_t kRowsPerPiece = 128;
constexpr int64_t kPiecesPerUnit = 4;
constexpr int64_t kColumnsOfChannel = 64;  // a channel in NCHW memory is cut into rows

// A problem is a stretch of memory whose groups depend on nothing outside it: an image, or in NCHW memory a group of
// an image. It consists of runs: one whose columns are the channels, or in NCHW memory one per channel.
struct Division {
  bool channels_last;
  int64_t problems, channels, groups;  // channels and groups of each problem
  int64_t runs, run_size, columns;
  int64_t piece_size, unit_size, units_per_run;

  // Empty tensors have no problem, or problems without a unit.
  explicit Division(const GroupNormLayout& l) : channels_last(l.channels_last) {
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

// Real is float, or double where the elements are.
template <class Real>
struct GroupNorm {
  Division d;
  GroupNormKernels kernels;
  int64_t image_channels, element;  // element: bytes
  const char* x;
  const char* grad = nullptr;
  char* out = nullptr;             // y, or the gradient of x
  std::vector<Real> weight, bias;  // (C,) or empty
  std::vector<Real> mean, rstd;    // (B, G), which is (problems, groups)
  std::vector<double> sums,
      centered_sums;  // (B, C), which is (problems, channels): of g and of g * (x - mean)

  GroupNorm(const GroupNormLayout& layout, const Tensor& t, std::vector<Real> w, std::vector<Real> b)
      : d(layout),
        kernels(fcos_fast::kernels(dtype_of(t)).group_norm_relu),
        image_channels(layout.channels),
        element(int64_t(t.element_size())),
        x(static_cast<const char*>(t.const_data_ptr())),
        weight(std::move(w)),
        bias(std::move(b)) {}

  // One number per run and column.
  struct Columns {
    std::vector<Real> mean, scale, shift, offset, slope;
  };

  template <class F>
  void for_each_problem(const F& f) const {
    // Many are shared out, each to one thread; few are taken one by one by all, so that only one fills the caches.
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

  // of(channel of the problem), for all its columns.
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

  void measure(int64_t problem, double eps) {
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
      mean[problem * d.groups + g] = Real(all.mean);
      rstd[problem * d.groups + g] = Real(math::reciprocal_deviation(all, eps));
    }
  }

  void apply(int64_t problem, const Columns& columns, void (*kernel)(const GroupNormSpan&)) const {
    torch::stable::parallel_for(0, d.units(), 1, [&](int64_t begin, int64_t end) {
      // Backwards: what was read last is the most likely to be in a cache.
      for (int64_t unit = end - 1; unit >= begin; --unit) for_each_piece(problem, unit, columns, kernel);
    });
  }

  void forward(double eps) {
    for_each_problem([&](int64_t problem) {
      measure(problem, eps);
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

  void backward() {
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

  // (B, C) sums of g * (x - mean) * rstd: what the weights' gradient is made of.
  std::vector<double> normalized_sums() const {
    std::vector<double> result(centered_sums);
    const int64_t channels = d.channels / d.groups;
    for (size_t i = 0; i < result.size(); ++i) result[i] *= double(rstd[i / channels]);
    return result;
  }
};

// Copies in the type of the computation; an absent parameter is empty.
template <class Real>
std::vector<Real> numbers_of(const std::optional<Tensor>& t) {
  if (!t.has_value()) return {};
  const ScalarType dtype = std::is_same_v<Real, double> ? ScalarType::Double : ScalarType::Float;
  const Tensor dense = torch::stable::contiguous(converted(*t, dtype));
  const Real* p = static_cast<const Real*>(dense.const_data_ptr());
  return std::vector<Real>(p, p + dense.numel());
}

template <class Real>
void write(Tensor& out, const std::vector<Real>& numbers) {
  std::copy(numbers.begin(), numbers.end(), static_cast<Real*>(out.mutable_data_ptr()));
}

// (C,) in the type of the parameter, from (B, C), added image by image.
template <class Real>
Tensor parameter_gradient(const std::optional<Tensor>& parameter, const Tensor& x,
                          const std::vector<double>& sums) {
  if (!parameter.has_value()) return new_empty(x, {0}, x.scalar_type());
  std::vector<Real> totals;
  for (int64_t c = 0; c < x.size(1); ++c) {
    double total = 0;
    for (int64_t b = 0; b < x.size(0); ++b) total += sums[b * x.size(1) + c];
    totals.push_back(Real(total));
  }
  Tensor grad = new_empty(x, {x.size(1)}, sum_type(x.scalar_type()));
  write(grad, totals);
  return converted(grad, parameter->scalar_type());
}

// f(float()), or f(double()) for float64.
template <class F>
void dispatch_real(ScalarType dtype, const F& f) {
  if (dtype == ScalarType::Double) return f(double());
  f(float());
}

std::tuple<Tensor, Tensor, Tensor> group_norm_relu(const Tensor& input, std::optional<Tensor> weight,
                                                   std::optional<Tensor> bias, int64_t groups, double eps) {
  check_group_norm(input, weight, bias, groups);
  check_number("group_norm_relu", "eps", eps, 0, INFINITY);
  const Tensor x = readable(input);
  Tensor y = torch::stable::empty_like(x);
  const GroupNormLayout layout = group_norm_layout(x, groups);
  Tensor mean = new_empty(x, {layout.batch, groups}, sum_type(x.scalar_type()));
  Tensor rstd = new_empty(x, {layout.batch, groups}, sum_type(x.scalar_type()));
  dispatch_real(x.scalar_type(), [&](auto real) {
    using Real = decltype(real);
    GroupNorm<Real> norm(layout, x, numbers_of<Real>(weight), numbers_of<Real>(bias));
    norm.out = static_cast<char*>(y.mutable_data_ptr());
    norm.mean.resize(layout.batch * groups);
    norm.rstd.resize(layout.batch * groups);
    norm.forward(eps);
    write(mean, norm.mean);
    write(rstd, norm.rstd);
  });
  return {in_order_of(y, input), mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor> group_norm_relu_backward(const Tensor& grad, const Tensor& input,
                                                            const Tensor& mean, const Tensor& rstd,
                                                            std::optional<Tensor> weight,
                                                            std::optional<Tensor> bias) {
  check_group_norm_grad(grad, input, mean, rstd, weight, bias);
  const Tensor x = readable(input);
  const Tensor upstream = in_order_of(converted(grad, x.scalar_type()), x);
  Tensor grad_x = torch::stable::empty_like(x), grad_weight, grad_bias;
  const GroupNormLayout layout = group_norm_layout(x, mean.size(1));
  dispatch_real(x.scalar_type(), [&](auto real) {
    using Real = decltype(real);
    GroupNorm<Real> norm(layout, x, numbers_of<Real>(weight), numbers_of<Real>(bias));
    norm.grad = static_cast<const char*>(upstream.const_data_ptr());
    norm.out = static_cast<char*>(grad_x.mutable_data_ptr());
    norm.mean = numbers_of<Real>(mean);
    norm.rstd = numbers_of<Real>(rstd);
    norm.backward();
    grad_bias = parameter_gradient<Real>(bias, x, norm.sums);
    grad_weight = parameter_gradient<Real>(weight, x, norm.normalized_sums());
  });
  return {in_order_of(grad_x, input), grad_weight, grad_bias};
}

}  // namespace
}  // namespace fcos_fast

STABLE_TORCH_LIBRARY_IMPL(fcos_fast, CPU, m) {
  m.impl("group_norm_relu", TORCH_BOX(&fcos_fast::group_norm_relu));
  m.impl("group_norm_relu_backward", TORCH_BOX(&fcos_fast::group_norm_relu_backward));
}
