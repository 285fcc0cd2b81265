// The operators of library.cpp on a device.
#pragma once

#include <torch/csrc/stable/library.h>

#include "box_loss.h"
#include "centerness.h"
#include "detection_loss.h"
#include "focal_loss.h"

namespace fcos_fast {

template <class Device, class Library>
void register_operators(Library& m) {
  m.impl("sigmoid_focal_loss", TORCH_BOX(&sigmoid_focal_loss<Device>));
  m.impl("sigmoid_focal_loss_sum", TORCH_BOX(&sigmoid_focal_loss_sum<Device>));
  m.impl("sigmoid_focal_loss_backward", TORCH_BOX(&sigmoid_focal_loss_backward<Device>));
  m.impl("sigmoid_focal_loss_star", TORCH_BOX(&sigmoid_focal_loss_star<Device>));
  m.impl("sigmoid_focal_loss_star_sum", TORCH_BOX(&sigmoid_focal_loss_star_sum<Device>));
  m.impl("sigmoid_focal_loss_star_backward", TORCH_BOX(&sigmoid_focal_loss_star_backward<Device>));

  m.impl("centerness", TORCH_BOX(&centerness<Device>));
  m.impl("centerness_backward", TORCH_BOX(&centerness_backward<Device>));

  m.impl("box_loss", TORCH_BOX(&box_loss<Device>));
  m.impl("box_loss_sum", TORCH_BOX(&box_loss_sum<Device>));
  m.impl("box_loss_backward", TORCH_BOX(&box_loss_backward<Device>));

  m.impl("detection_loss", TORCH_BOX(&detection_loss<Device>));
  m.impl("detection_loss_backward", TORCH_BOX(&detection_loss_backward<Device>));
  m.impl("detection_loss_rescale_", TORCH_BOX(&detection_loss_rescale_<Device>));
}

}  // namespace fcos_fast
