// The Python module fcos_fast._C: build facts. Importing it registers the schemas and the CPU operators.
#include <pybind11/pybind11.h>
#include <torch/csrc/stable/ops.h>

#include "build_facts.h"  // written by setup.py
#include "cpu/kernels.h"

PYBIND11_MODULE(_C, m) {
  m.doc() = "Build facts and CPU operators of fcos_fast.";
  m.attr("source_hash") = FCOS_FAST_SOURCE_HASH;
  m.attr("build_torch") = FCOS_FAST_BUILD_TORCH;
  m.attr("cuda_targets") = FCOS_FAST_CUDA_TARGETS;  // e.g. "sm_80 sm_90 compute_90"
#if defined(__clang__)
  m.attr("compiler") = "clang " __clang_version__;
#else
  m.attr("compiler") = "gcc " __VERSION__;
#endif
  m.def(
      "simd", [] { return fcos_fast::kernel_set().name; }, "The instruction set that the CPU operators use.");
  m.def(
      "threads", [] { return torch::stable::get_num_threads(); },
      "The number of threads that the CPU operators use.");
}
