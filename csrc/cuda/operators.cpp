#include "../operators.h"

STABLE_TORCH_LIBRARY_IMPL(fcos_fast, CUDA, m) { fcos_fast::register_operators<fcos_fast::Cuda>(m); }
