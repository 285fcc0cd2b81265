#include "../focal_layout.h"
#include "kernels.h"
#include "reduction.h"

namespace fcos_fast {
namespace {

constexpr int64_t kBlock =
    16384;  // elements per unit of work; fixed, so that sums do not depend on the threads

// The whole work; run() does a stretch of it.
struct Job {
  const Kernels& kernel;
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
    return kernel.focal(span, parameters);
  }
};

double run_dense(const Job& job, int64_t numel) {
  return sum_units((numel + kBlock - 1) / kBlock, [&](int64_t u) {
    const int64_t begin = u * kBlock;
    return job.run(begin, std::min(kBlock, numel - begin));
  });
}

// Rows of classes: nearly all elements are background, so they run in long spans between the foreground ones.
double run_rows(const Job& job, const FocalLayout& layout, const int32_t* labels) {
  const int64_t classes = layout.classes;
  const int64_t rows_per_unit = std::max<int64_t>(1, kBlock / std::max<int64_t>(1, classes));
  const std::vector<int32_t> ignored(classes, -2);
  return sum_units((layout.outer + rows_per_unit - 1) / rows_per_unit, [&](int64_t u) {
    const int64_t first = u * rows_per_unit, last = std::min(first + rows_per_unit, layout.outer);
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
        total += job.run(at, classes, ignored.data());
        begin = at + classes;
      }
    }
    if (last * classes > begin) total += job.run(begin, last * classes - begin);
    return total;
  });
}

// Planes of locations, one per class.
double run_planes(const Job& job, const FocalLayout& layout, const int32_t* labels) {
  const int64_t block = std::max<int64_t>(64, kBlock / layout.classes);
  const int64_t blocks = (layout.inner + block - 1) / block;
  return sum_units(layout.outer * blocks, [&](int64_t u) {
    const int64_t o = u / blocks, i = (u % blocks) * block;
    const int64_t n = std::min(block, layout.inner - i);
    double total = 0;
    for (int64_t c = 0; c < layout.classes; ++c) {
      total +=
          job.run((o * layout.classes + c) * layout.inner + i, n, labels + o * layout.inner + i, int32_t(c));
    }
    return total;
  });
}

// Class targets as contiguous int32. What int32 cannot hold is background, not what its low bits say.
class Labels {
 public:
  explicit Labels(const Tensor& targets) {
    if (targets.scalar_type() == ScalarType::Int) {
      tensor_ = torch::stable::contiguous(targets);
      values_ = static_cast<const int32_t*>(tensor_.const_data_ptr());
      return;
    }
    tensor_ = torch::stable::contiguous(converted(targets, ScalarType::Long));
    const auto* wide = static_cast<const int64_t*>(tensor_.const_data_ptr());
    narrowed_.resize(tensor_.numel());
    std::transform(wide, wide + tensor_.numel(), narrowed_.begin(),
                   [](int64_t label) { return int32_t(label) == label ? int32_t(label) : -1; });
    values_ = narrowed_.data();
  }
  const int32_t* values() const { return values_; }

 private:
  Tensor tensor_;
  std::vector<int32_t> narrowed_;
  const int32_t* values_;
};

// Result::kSum goes to *sum, and with `with_grad` its gradient is returned; the others return what they are called.
Tensor run(const Tensor& inputs, const Tensor& targets, const FocalParameters& parameters, Result want,
           const Tensor* grad, bool with_grad = false, Tensor* sum = nullptr) {
  check_focal(inputs, targets, grad);
  const bool dense = is_floating_point(targets.scalar_type());
  const auto layout = dense ? std::optional<FocalLayout>() : find_focal_layout(inputs);
  const bool as_it_lies = dense ? is_dense(inputs) : layout.has_value();
  const Tensor x = as_it_lies ? inputs : torch::stable::contiguous(inputs);
  const ScalarType dtype = x.scalar_type();

  const bool elementwise = want != Result::kSum || with_grad;
  Tensor out = elementwise ? torch::stable::empty_like(x) : new_empty(x, {0}, dtype);
  Job job{kernels(dtype), parameters, int64_t(x.element_size()), FocalSpan{}};
  job.base.x = x.const_data_ptr();
  job.base.with_sum = want == Result::kSum;
  if (want == Result::kElements) job.base.loss = out.mutable_data_ptr();
  if (want == Result::kGrad || with_grad) job.base.grad = out.mutable_data_ptr();

  Upstream upstream;
  upstream.scale = 1;
  if (grad != nullptr) {
    upstream = upstream_of(*grad, dtype, [&](const Tensor& g) { return in_order_of(g, x); });
  }
  job.base.upstream = upstream.elements;
  job.base.scale = upstream.scale;

  double total;
  if (dense) {
    const Tensor y = in_order_of(converted(targets, dtype), x);
    job.base.targets = y.const_data_ptr();
    total = run_dense(job, x.numel());
  } else {
    const Labels labels(targets);
    const FocalLayout at = layout.value_or(FocalLayout{targets.numel(), x.size(x.dim() - 1), 1});
    total = at.inner == 1 ? run_rows(job, at, labels.values()) : run_planes(job, at, labels.values());
  }
  if (want == Result::kSum) {
    *sum = new_empty(x, {}, sum_type(dtype));
    write_scalar(*sum, total);
  }
  if (as_it_lies || !elementwise) return out;
  Tensor result = torch::stable::empty_like(inputs);
  torch::stable::copy_(result, out);
  return result;
}

std::tuple<Tensor, Tensor> run_sum(const Tensor& inputs, const Tensor& targets,
                                   const FocalParameters& parameters, bool with_grad) {
  Tensor sum;
  const Tensor grad = run(inputs, targets, parameters, Result::kSum, nullptr, with_grad, &sum);
  return {sum, grad};
}

Tensor sigmoid_focal_loss(const Tensor& inputs, const Tensor& targets, double alpha, double gamma) {
  return run(inputs, targets, focal(alpha, gamma), Result::kElements, nullptr);
}
std::tuple<Tensor, Tensor> sigmoid_focal_loss_sum(const Tensor& inputs, const Tensor& targets, double alpha,
                                                  double gamma, bool with_grad) {
  return run_sum(inputs, targets, focal(alpha, gamma), with_grad);
}
Tensor sigmoid_focal_loss_backward(const Tensor& grad, const Tensor& inputs, const Tensor& targets,
                                   double alpha, double gamma) {
  return run(inputs, targets, focal(alpha, gamma), Result::kGrad, &grad);
}
Tensor sigmoid_focal_loss_star(const Tensor& inputs, const Tensor& targets, double gamma, double beta) {
  return run(inputs, targets, focal_star(gamma, beta), Result::kElements, nullptr);
}
std::tuple<Tensor, Tensor> sigmoid_focal_loss_star_sum(const Tensor& inputs, const Tensor& targets,
                                                       double gamma, double beta, bool with_grad) {
  return run_sum(inputs, targets, focal_star(gamma, beta), with_grad);
}
Tensor sigmoid_focal_loss_star_backward(const Tensor& grad, const Tensor& inputs, const Tensor& targets,
                                        double gamma, double beta) {
  return run(inputs, targets, focal_star(gamma, beta), Result::kGrad, &grad);
}

}  // namespace
}  // namespace fcos_fast

STABLE_TORCH_LIBRARY_IMPL(fcos_fast, CPU, m) {
  using namespace fcos_fast;
  m.impl("sigmoid_focal_loss", TORCH_BOX(&sigmoid_focal_loss));
  m.impl("sigmoid_focal_loss_sum", TORCH_BOX(&sigmoid_focal_loss_sum));
  m.impl("sigmoid_focal_loss_backward", TORCH_BOX(&sigmoid_focal_loss_backward));
  m.impl("sigmoid_focal_loss_star", TORCH_BOX(&sigmoid_focal_loss_star));
  m.impl("sigmoid_focal_loss_star_sum", TORCH_BOX(&sigmoid_focal_loss_star_sum));
  m.impl("sigmoid_focal_loss_star_backward", TORCH_BOX(&sigmoid_focal_loss_star_backward));
}
