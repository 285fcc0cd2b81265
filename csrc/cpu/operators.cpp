#include "../operators.h"

#include "../winograd.h"

STABLE_TORCH_LIBRARY_IMPL(fcos_fast, CPU, m) {
  fcos_fast::register_operators<fcos_fast::Cpu>(m);
  m.impl("winograd_input", TORCH_BOX(&fcos_fast::winograd_input));
  m.impl("winograd_gradient", TORCH_BOX(&fcos_fast::winograd_gradient));
  m.impl("winograd_output", TORCH_BOX(&fcos_fast::winograd_output));
}
