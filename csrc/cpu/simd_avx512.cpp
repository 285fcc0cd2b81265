// The kernels for AVX-512 (F, BW, DQ, VL).
#if defined(__x86_64__)
#include <immintrin.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "target.h"

// External headers are included above: only the code below is compiled for this instruction set.
#if !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in the compiler's own intrinsics
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
FCOS_TARGET_BEGIN("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#define FCOS_SIMD_NAMESPACE avx512
#define FCOS_SIMD_BYTES 64
#include "kernel_table.h"
FCOS_TARGET_END
#endif
