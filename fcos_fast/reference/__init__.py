"""The operators in plain PyTorch: the specification that the C++ and CUDA operators are tested against.

Same names and signatures as in :mod:`fcos_fast.ops`, which documents them. Needs no compiled extension; gradients are
by autograd.
"""

from fcos_fast.reference.assign_targets import assign_targets
from fcos_fast.reference.box_loss import box_loss
from fcos_fast.reference.centerness import centerness
from fcos_fast.reference.detection_loss import detection_loss
from fcos_fast.reference.focal_loss import sigmoid_focal_loss, sigmoid_focal_loss_star
from fcos_fast.reference.group_norm_relu import group_norm_relu
from fcos_fast.reference.match_anchors import match_anchors
from fcos_fast.reference.nms import batched_nms, nms, nms_padded
from fcos_fast.reference.postprocess import postprocess

__all__ = [
    "assign_targets",
    "batched_nms",
    "box_loss",
    "centerness",
    "detection_loss",
    "group_norm_relu",
    "match_anchors",
    "nms",
    "nms_padded",
    "postprocess",
    "sigmoid_focal_loss",
    "sigmoid_focal_loss_star",
]
