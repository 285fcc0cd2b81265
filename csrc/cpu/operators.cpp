#include "../operators.h"

STABLE_TORCH_LIBRARY_IMPL(fcos_fast, CPU, m) { fcos_fast::register_operators<fcos_fast::Cpu>(m); }
