#include "../math/box_loss.h"

#include "kernels.h"
#include "reduction.h"

namespace fcos_fast {

void run_box_loss(Cpu, const BoxLossParameters& parameters, const BoxLossWork& work) {
  // Pairs per unit of work. Fixed, so sums do not depend on the number of threads.
  constexpr int64_t kBlock = 2048;
  const BoxLossKernel kernel = kernels(work.dtype).box_loss;
  const int64_t row = 4 * size_of(work.dtype), real = work.dtype == Dtype::kFloat64 ? 8 : 4;
  const double scale = read_scalar(work.scale, work.dtype);
  const double total = sum_units((work.n + kBlock - 1) / kBlock, [&](int64_t unit) {
    const int64_t begin = unit * kBlock;
    return kernel({advance(work.pred, begin * row), advance(work.target, begin * row),
                   std::min(kBlock, work.n - begin), advance(work.upstream, begin * real), scale,
                   advance(work.loss, begin * real), advance(work.grad, begin * row)},
                  parameters);
  });
  if (work.sum != nullptr) write_scalar(work.sum, work.dtype, total);
}

}  // namespace fcos_fast
