"""Operators in C++ and CUDA, with support for autograd, ``torch.compile`` and autocast."""

from fcos_fast.ops import winograd as _winograd  # noqa: F401  # registers internal operators
from fcos_fast.ops.assign_targets import assign_targets
from fcos_fast.ops.box_loss import box_loss
from fcos_fast.ops.centerness import centerness
from fcos_fast.ops.detection_loss import detection_loss
from fcos_fast.ops.focal_loss import sigmoid_focal_loss, sigmoid_focal_loss_star
from fcos_fast.ops.group_norm_relu import group_norm_relu
from fcos_fast.ops.match_anchors import match_anchors
from fcos_fast.ops.nms import batched_nms, nms, nms_padded
from fcos_fast.ops.postprocess import postprocess

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
