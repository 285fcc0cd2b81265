#include "focal_job.h"
#include "reduction.h"

namespace fcos_fast {

void run_focal_loss(Cpu, const FocalParameters& parameters, const FocalLossWork& work) {
  FocalSpan base{};
  base.x = work.x;
  base.targets = work.targets;
  base.upstream = work.upstream;
  base.scale = read_scalar(work.scale, work.dtype);
  base.loss = work.loss;
  base.grad = work.grad;
  base.with_sum = work.sum != nullptr;
  const FocalJob job{kernels(work.dtype).focal, parameters, size_of(work.dtype), base};
  double total;
  if (work.targets != nullptr) {
    total = sum_units((work.n + kFocalElements - 1) / kFocalElements, [&](int64_t u) {
      const int64_t begin = u * kFocalElements;
      return job.run(begin, std::min(kFocalElements, work.n - begin));
    });
  } else {
    const ClassFocalJob units{job, work.outer, work.classes, work.inner, work.labels, work.weights};
    total = sum_units(units.count(), [&](int64_t u) { return units.run(u); });
  }
  if (work.sum != nullptr) write_scalar(work.sum, work.dtype, total);
}

}  // namespace fcos_fast
