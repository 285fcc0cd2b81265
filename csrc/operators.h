// Registers the operators of library.cpp for a device.
#pragma once

#include <torch/csrc/stable/library.h>

#include "assign_targets.h"
#include "box_loss.h"
#include "centerness.h"
#include "detection_loss.h"
#include "focal_loss.h"
#include "group_norm_relu.h"
#include "match_anchors.h"
#include "nms.h"
#include "postprocess.h"

namespace fcos_fast {

template <class Device, class Library>
void register_operators(Library& m) {
  m.impl("sigmoid_focal_loss", TORCH_BOX(&sigmoid_focal_loss<Device>));
  m.impl("sigmoid_focal_loss_sum", TORCH_BOX(&sigmoid_focal_loss_sum<Device>));
  m.impl("sigmoid_focal_loss_backward", TORCH_BOX(&sigmoid_focal_loss_backward<Device>));
  m.impl("sigmoid_focal_loss_star", TORCH_BOX(&sigmoid_focal_loss_star<Device>));
  m.impl("sigmoid_focal_loss_star_sum", TORCH_BOX(&sigmoid_focal_loss_star_sum<Device>));
  m.impl("sigmoid_focal_loss_star_backward", TORCH_BOX(&sigmoid_focal_loss_star_backward<Device>));

  m.impl("assign_targets", TORCH_BOX(&assign_targets<Device>));

  m.impl("match_anchors", TORCH_BOX(&match_anchors<Device>));

  m.impl("centerness", TORCH_BOX(&centerness<Device>));
  m.impl("centerness_backward", TORCH_BOX(&centerness_backward<Device>));

  m.impl("box_loss", TORCH_BOX(&box_loss<Device>));
  m.impl("box_loss_sum", TORCH_BOX(&box_loss_sum<Device>));
  m.impl("box_loss_backward", TORCH_BOX(&box_loss_backward<Device>));

  m.impl("detection_loss", TORCH_BOX(&detection_loss<Device>));
  m.impl("detection_loss_backward", TORCH_BOX(&detection_loss_backward<Device>));
  m.impl("detection_loss_rescale_", TORCH_BOX(&detection_loss_rescale_<Device>));

  m.impl("group_norm_relu", TORCH_BOX(&group_norm_relu<Device>));
  m.impl("group_norm_relu_backward", TORCH_BOX(&group_norm_relu_backward<Device>));

  m.impl("nms", TORCH_BOX(&nms<Device>));
  m.impl("nms_padded", TORCH_BOX(&nms_padded<Device>));

  m.impl("postprocess", TORCH_BOX(&postprocess<Device>));
}

}  // namespace fcos_fast
