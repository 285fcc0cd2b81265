#include "focal_job.h"
#include "reduction.h"

namespace fcos_fast {
namespace {

double run_dense(const FocalJob& job, int64_t numel) {
  return sum_units((numel + kFocalBlock - 1) / kFocalBlock, [&](int64_t u) {
    const int64_t begin = u * kFocalBlock;
    return job.run(begin, std::min(kFocalBlock, numel - begin));
  });
}

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
  FocalJob job{kernels(dtype_of(dtype)).focal, parameters, int64_t(x.element_size()), FocalSpan{}};
  job.base.x = x.const_data_ptr();
  job.base.with_sum = want == Result::kSum;
  if (want == Result::kElements) job.base.loss = out.mutable_data_ptr();
  if (want == Result::kGrad || with_grad) job.base.grad = out.mutable_data_ptr();

  const Upstream upstream = upstream_of(grad, dtype, [&](const Tensor& g) { return in_order_of(g, x); });
  job.base.upstream = upstream.elements;
  job.base.scale = read_scalar(upstream.scale, dtype_of(dtype));

  double total;
  if (dense) {
    const Tensor y = in_order_of(converted(targets, dtype), x);
    job.base.targets = y.const_data_ptr();
    total = run_dense(job, x.numel());
  } else {
    const bool is_int = targets.scalar_type() == ScalarType::Int;
    const Tensor classes = torch::stable::contiguous(is_int ? targets : converted(targets, ScalarType::Long));
    const FocalLayout at = layout.value_or(FocalLayout{targets.numel(), x.size(x.dim() - 1), 1});
    const ClassFocalJob units{job, at, ClassLabels(classes)};
    total = sum_units(units.count(), [&](int64_t u) { return units.run(u); });
  }
  if (want == Result::kSum) {
    *sum = new_empty(x, {}, sum_type(dtype));
    write_scalar(sum->mutable_data_ptr(), dtype_of(dtype), total);
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
