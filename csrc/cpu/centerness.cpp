#include "../centerness_arguments.h"
#include "kernels.h"

namespace fcos_fast {
namespace {

constexpr int64_t kGrain = 4096;  // locations

Tensor run(const Tensor& ltrb, const Tensor* grad) {
  check_centerness(ltrb, grad);
  const ScalarType dtype = ltrb.scalar_type();
  const Tensor rows = torch::stable::contiguous(ltrb);
  std::vector<int64_t> sizes = sizes_of(rows);
  if (grad == nullptr) sizes.pop_back();
  Tensor out = new_empty(rows, sizes, dtype);
  Tensor upstream;
  if (grad != nullptr) upstream = torch::stable::contiguous(converted(*grad, dtype));

  const auto* in = static_cast<const char*>(rows.const_data_ptr());
  const auto* flow = grad == nullptr ? nullptr : static_cast<const char*>(upstream.const_data_ptr());
  auto* result = static_cast<char*>(out.mutable_data_ptr());
  const int64_t element = int64_t(rows.element_size());
  const int64_t columns = grad == nullptr ? 1 : 4;
  const CenternessKernel kernel = kernels(dtype).centerness;
  torch::stable::parallel_for(0, rows.numel() / 4, kGrain, [&](int64_t begin, int64_t end) {
    kernel(in + begin * 4 * element, flow ? flow + begin * element : nullptr,
           result + begin * columns * element, end - begin);
  });
  return out;
}

Tensor centerness(const Tensor& ltrb) { return run(ltrb, nullptr); }
Tensor centerness_backward(const Tensor& grad, const Tensor& ltrb) { return run(ltrb, &grad); }

}  // namespace
}  // namespace fcos_fast

STABLE_TORCH_LIBRARY_IMPL(fcos_fast, CPU, m) {
  using namespace fcos_fast;
  m.impl("centerness", TORCH_BOX(&centerness));
  m.impl("centerness_backward", TORCH_BOX(&centerness_backward));
}
