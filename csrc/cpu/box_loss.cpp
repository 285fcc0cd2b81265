#include "../box_loss_arguments.h"
#include "kernels.h"
#include "reduction.h"

namespace fcos_fast {
namespace {

constexpr int64_t kBlock = 2048;  // pairs per unit of work; fixed, so that sums do not depend on the threads

Tensor run(const Tensor& pred, const Tensor& target, const BoxLossParameters& parameters, Result want,
           const Tensor* grad) {
  check_box_pairs(pred, target, grad);
  const ScalarType dtype = pred.scalar_type();
  const Tensor p = torch::stable::contiguous(pred);
  const Tensor t = torch::stable::contiguous(converted(target, dtype));
  const int64_t pairs = p.numel() / 4;

  std::vector<int64_t> sizes = sizes_of(p);
  if (want == Result::kElements) sizes.pop_back();
  if (want == Result::kSum) sizes.clear();
  Tensor out = new_empty(p, sizes, want == Result::kGrad ? dtype : sum_type(dtype));
  BoxLossSpan base{p.const_data_ptr(), t.const_data_ptr(), pairs, nullptr, 0, nullptr, nullptr};
  if (want == Result::kElements) base.loss = out.mutable_data_ptr();
  if (want == Result::kGrad) base.grad = out.mutable_data_ptr();

  Upstream upstream;
  if (grad != nullptr) {
    upstream =
        upstream_of(*grad, sum_type(dtype), [](const Tensor& g) { return torch::stable::contiguous(g); });
  }
  base.upstream = upstream.elements;
  base.scale = upstream.scale;

  const BoxLossKernel kernel = kernels(dtype).box_loss;
  const int64_t element = int64_t(p.element_size()), real = dtype == ScalarType::Double ? 8 : 4;
  const int64_t units = (pairs + kBlock - 1) / kBlock;
  const double total = sum_units(units, [&](int64_t u) {
    auto advance = [&](const void* pointer, int64_t bytes) {
      return pointer ? static_cast<const char*>(pointer) + u * kBlock * bytes : nullptr;
    };
    BoxLossSpan span = base;
    span.pred = advance(base.pred, 4 * element);
    span.target = advance(base.target, 4 * element);
    span.upstream = advance(base.upstream, real);
    span.loss = const_cast<char*>(advance(base.loss, real));
    span.grad = const_cast<char*>(advance(base.grad, 4 * element));
    span.n = std::min(kBlock, pairs - u * kBlock);
    return kernel(span, parameters);
  });
  if (want == Result::kSum) write_scalar(out, total);
  return out;
}

Tensor box_loss(const Tensor& pred, const Tensor& target, int64_t kind, bool ltrb, double smooth,
                double eps) {
  return run(pred, target, box_loss_parameters(kind, ltrb, smooth, eps), Result::kElements, nullptr);
}
Tensor box_loss_sum(const Tensor& pred, const Tensor& target, int64_t kind, bool ltrb, double smooth,
                    double eps) {
  return run(pred, target, box_loss_parameters(kind, ltrb, smooth, eps), Result::kSum, nullptr);
}
Tensor box_loss_backward(const Tensor& grad, const Tensor& pred, const Tensor& target, int64_t kind,
                         bool ltrb, double smooth, double eps) {
  return run(pred, target, box_loss_parameters(kind, ltrb, smooth, eps), Result::kGrad, &grad);
}

}  // namespace
}  // namespace fcos_fast

STABLE_TORCH_LIBRARY_IMPL(fcos_fast, CPU, m) {
  using namespace fcos_fast;
  m.impl("box_loss", TORCH_BOX(&box_loss));
  m.impl("box_loss_sum", TORCH_BOX(&box_loss_sum));
  m.impl("box_loss_backward", TORCH_BOX(&box_loss_backward));
}
