// The operators of library.cpp on a device.
#pragma once

#include <torch/csrc/stable/library.h>

#include "box_loss.h"
#include "centerness.h"
#include "group_norm_relu.h"

namespace fcos_fast {

template <class Device, class Library>
void register_operators(Library& m) {
  m.impl("centerness", TORCH_BOX(&centerness<Device>));
  m.impl("centerness_backward", TORCH_BOX(&centerness_backward<Device>));

  m.impl("box_loss", TORCH_BOX(&box_loss<Device>));
  m.impl("box_loss_sum", TORCH_BOX(&box_loss_sum<Device>));
  m.impl("box_loss_backward", TORCH_BOX(&box_loss_backward<Device>));

  m.impl("group_norm_relu", TORCH_BOX(&group_norm_relu<Device>));
  m.impl("group_norm_relu_backward", TORCH_BOX(&group_norm_relu_backward<Device>));
}

}  // namespace fcos_fast
