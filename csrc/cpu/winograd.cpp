#include "../math/winograd.h"

#include <torch/csrc/stable/ops.h>

#include "kernels.h"

namespace fcos_fast {

constexpr int64_t kGrain = 4;  // tiles

static const WinogradKernels& kernels() { return kernels(Dtype::kFloat32).winograd; }

template <class Work>
static void run(const Work& work, void (*kernel)(const Work&, int64_t, int64_t)) {
  torch::stable::parallel_for(work.begin, work.end, kGrain,
                              [&](int64_t begin, int64_t end) { kernel(work, begin, end); });
}

void run_winograd_input(Cpu, const WinogradRead& work) { run(work, kernels().input); }
void run_winograd_gradient(Cpu, const WinogradRead& work) { run(work, kernels().gradient); }
void run_winograd_output(Cpu, const WinogradWrite& work) { run(work, kernels().output); }

}  // namespace fcos_fast
