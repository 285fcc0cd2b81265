#include "kernels.h"

#include <torch/headeronly/util/Exception.h>

#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace fcos_fast {

namespace baseline {
extern const KernelSet kernel_set;
}
#if defined(__x86_64__)
namespace avx2 {
extern const KernelSet kernel_set;
}
namespace avx512 {
extern const KernelSet kernel_set;
}
#endif

static std::vector<const KernelSet*> runnable_sets() {  // widest first
  std::vector<const KernelSet*> runnable;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 =
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  const bool has_avx512 = has_avx2 && __builtin_cpu_supports("avx512f") &&
                          __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                          __builtin_cpu_supports("avx512vl");
  if (has_avx512) runnable.push_back(&avx512::kernel_set);
  if (has_avx2) runnable.push_back(&avx2::kernel_set);
#endif
  runnable.push_back(&baseline::kernel_set);
  return runnable;
}

static const KernelSet* choose_set() {
  const auto runnable = runnable_sets();
  const char* requested = std::getenv("FCOS_FAST_SIMD");
  if (requested == nullptr || *requested == '\0') return runnable.front();
  std::string names;
  for (const KernelSet* candidate : runnable) {
    if (std::strcmp(candidate->name, requested) == 0) return candidate;
    names += std::string(names.empty() ? "" : ", ") + candidate->name;
  }
  STD_TORCH_CHECK(false, "FCOS_FAST_SIMD=", requested, " is not supported on this CPU; available: ", names);
}

const KernelSet& kernel_set() {
  static const KernelSet* chosen = choose_set();
  return *chosen;
}

const Kernels& kernels(Dtype dtype) {
  const KernelSet& set = kernel_set();
  switch (dtype) {
    case Dtype::kBFloat16:
      return set.bfloat16;
    case Dtype::kFloat16:
      return set.float16;
    case Dtype::kFloat64:
      return set.float64;
    default:
      return set.float32;
  }
}

}  // namespace fcos_fast
