// The kernels for the instruction set that every CPU of the architecture supports: SSE2 or NEON.
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#define FCOS_SIMD_NAMESPACE baseline
#define FCOS_SIMD_BYTES 16
#include "kernel_table.h"
