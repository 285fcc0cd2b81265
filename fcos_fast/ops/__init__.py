"""The public operators."""

from fcos_fast.reference import (
    assign_targets,
    batched_nms,
    box_loss,
    centerness,
    nms,
    sigmoid_focal_loss,
    sigmoid_focal_loss_star,
)

__all__ = [
    "assign_targets",
    "batched_nms",
    "box_loss",
    "centerness",
    "nms",
    "sigmoid_focal_loss",
    "sigmoid_focal_loss_star",
]
