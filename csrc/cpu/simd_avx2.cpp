// The kernels for AVX2 with FMA and F16C.
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
FCOS_TARGET_BEGIN("avx2,fma,f16c")
#define FCOS_SIMD_NAMESPACE avx2
#define FCOS_SIMD_BYTES 32
#include "kernel_table.h"
FCOS_TARGET_END
#endif
