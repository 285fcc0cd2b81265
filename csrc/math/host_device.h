// Marks the scalar mathematics that the CPU and the CUDA file of an operator share.
//
// Products and sums are never contracted to a fused multiply-add behind our back (-ffp-contract=off,
// -fmad=false), so that comparisons on an exact threshold come out alike everywhere; where a fused one is
// wanted, fma() says so.
#pragma once

#if defined(__CUDACC__)
#define FCOS_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define FCOS_HOST_DEVICE inline __attribute__((always_inline))
#endif
