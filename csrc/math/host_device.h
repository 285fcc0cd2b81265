// Marks the scalar math shared by the CPU and CUDA sources of an operator.
//
// The compiler never contracts products and sums into a fused multiply-add (-ffp-contract=off, -fmad=false), so
// comparisons at an exact threshold agree on every device. Code that wants a fused one calls fma().
#pragma once

#if defined(__CUDACC__)
#define FCOS_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FCOS_HOST_DEVICE inline __attribute__((always_inline))
#endif
