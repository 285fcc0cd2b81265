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
  Tensor out = want == Result::kSum ? new_empty(p, {}, sum_type(dtype)) : new_empty(p, sizes, dtype);
  BoxLossSpan base{p.const_data_ptr(), t.const_data_ptr(), pairs, nullptr, 0, nullptr, nullptr};
  if (want == Result::kElements) base.loss = out.mutable_data_ptr();
  if (want == Result::kGrad) base.grad = out.mutable_data_ptr();

  Upstream upstream;
  if (grad != nullptr) {
    upstream = upstream_of(*grad, dtype, [](const Tensor& g) { return torch::stable::contiguous(g); });
  }
  base.upstream = upstream.elements;
  base.scale = upstream.scale;

  const BoxLossKernel kernel = kernels(dtype).box_loss;
  const int64_t element = int64_t(p.element_size());
  const int64_t units = (pairs + kBlock - 1) / kBlock;
  const double total = sum_units(units, [&](int64_t u) {
    auto advance = [&](const void* pointer, int64_t columns) {
      return pointer ? static_cast<const char*>(pointer) + u * kBlock * columns * element : nullptr;
    };
    BoxLossSpan span = base;
    span.pred = advance(base.pred, 4);
    span.target = advance(base.target, 4);
    span.upstream = advance(base.upstream, 1);
    span.loss = const_cast<char*>(advance(base.loss, 1));
    span.grad = const_cast<char*>(advance(base.grad, 4));
    span.n = std::min(kBlock, pairs - u * kBlock);
    return kernel(span, parameters);
  });
  if (want == Result::kSum) write_scalar(out, total);
  return out;
}

BoxLossParameters parameters_of(int64_t kind, bool ltrb, double smooth, double eps) {
  STD_TORCH_CHECK(kind >= 0 && kind <= int64_t(math::BoxLossKind::kCiou), "fcos_fast::box_loss: kind ", kind,
                  " is not one of 0..4");
  return {math::BoxLossKind(kind), ltrb, smooth, eps};
}

Tensor box_loss(const Tensor& pred, const Tensor& target, int64_t kind, bool ltrb, double smooth,
                double eps) {
  return run(pred, target, parameters_of(kind, ltrb, smooth, eps), Result::kElements, nullptr);
}
Tensor box_loss_sum(const Tensor& pred, const Tensor& target, int64_t kind, bool ltrb, double smooth,
                    double eps) {
  return run(pred, target, parameters_of(kind, ltrb, smooth, eps), Result::kSum, nullptr);
}
Tensor box_loss_backward(const Tensor& grad, const Tensor& pred, const Tensor& target, int64_t kind,
                         bool ltrb, double smooth, double eps) {
  return run(pred, target, parameters_of(kind, ltrb, smooth, eps), Result::kGrad, &grad);
}

}  // namespace
}  // namespace fcos_fast

STABLE_TORCH_LIBRARY_IMPL(fcos_fast, CPU, m) {
  using namespace fcos_fast;
  m.impl("box_loss", TORCH_BOX(&box_loss));
  m.impl("box_loss_sum", TORCH_BOX(&box_loss_sum));
  m.impl("box_loss_backward", TORCH_BOX(&box_loss_backward));
}
