"""IoU losses between boxes: IoU, linear IoU, GIoU, DIoU, CIoU."""

from __future__ import annotations

import torch
from torch import Tensor

from fcos_fast import reference
from fcos_fast._extension import cpu_error, use_native
from fcos_fast.ops import _checks
from fcos_fast.ops._checks import ArgumentValueError
from fcos_fast.ops._register import (
    call,
    in_transform,
    register_fake,
    register_gradient,
    reject_second_derivative,
    sum_type,
)
from fcos_fast.reference.reduction import reduce

KINDS = ("iou", "linear_iou", "giou", "diou", "ciou")
FORMATS = ("xyxy", "ltrb")


def box_loss(
    pred: Tensor,
    target: Tensor,
    kind: str = "giou",
    reduction: str = "none",
    *,
    box_format: str = "xyxy",
    smooth: float = 0.0,
    eps: float = 1e-7,
) -> Tensor:
    """IoU-based loss between predicted and target boxes.

    With ``xyxy`` boxes and default arguments, ``giou``, ``diou`` and ``ciou`` are equal to torchvision's
    ``generalized_box_iou_loss``, ``distance_box_iou_loss`` and ``complete_box_iou_loss``.

    Args:
        pred: (..., 4) predicted boxes; float32, float64, bfloat16 or float16; computed in float32 (float64).
        target: (..., 4) target boxes, with the shape of ``pred``.
        kind: ``"iou"`` -log(IoU) (UnitBox, 2016), ``"linear_iou"`` 1 - IoU, ``"giou"`` (Rezatofighi et al., 2019),
            ``"diou"`` or ``"ciou"`` (Zheng et al., 2020).
        reduction: ``"none"``, ``"sum"`` or ``"mean"``.
        box_format: ``"xyxy"`` corners, or ``"ltrb"`` distances from a common location to the four sides.
        smooth: added to intersection and union; 1 in the official FCOS.
        eps: avoids division by zero; -log(IoU) is clamped at -log(eps).

    Returns:
        The losses with shape ``pred.shape[:-1]``, or a scalar. float64 if one of the inputs is, else float32, even for
        16-bit boxes (like torchvision's). Both inputs get gradients, in their dtypes.

    Raises:
        TypeError: wrong dtype.
        ValueError: wrong shape or device, or an unknown kind, reduction or format.
    """
    _check(pred, target, kind, reduction, box_format)
    if not use_native(pred):
        return reference.box_loss(
            pred, target, kind, reduction, box_format=box_format, smooth=smooth, eps=eps
        )
    dtype = torch.promote_types(pred.dtype, target.dtype)
    pred, target = pred.to(dtype), target.to(dtype)
    arguments = (pred, target, kind, box_format == "ltrb", float(smooth), float(eps))
    if reduction == "none":
        return call("box_loss", *arguments)
    if in_transform():
        return reduce(call("box_loss", *arguments), reduction)
    total = torch.ops.fcos_fast.box_loss_sum(*arguments)
    if reduction == "mean" and pred.numel() > 0:
        total = total / (pred.numel() // 4)
    return total


def _check(pred: Tensor, target: Tensor, kind: str, reduction: str, box_format: str) -> None:
    op = "box_loss"
    _checks.check_same_device(op, pred=pred, target=target)
    _checks.check_float(op, pred=pred, target=target)
    _checks.check_boxes(op, pred=pred, target=target)
    _checks.check_reduction(op, reduction)
    if pred.shape != target.shape:
        raise ArgumentValueError(
            f"{op}: pred has shape {tuple(pred.shape)}, target {tuple(target.shape)}; expected the same shape"
        )
    _checks.check_choices(op, kind=(kind, KINDS), box_format=(box_format, FORMATS))


if cpu_error is None:
    for name in ("box_loss", "box_loss_sum"):
        register_gradient(name, "box_loss_backward", tensors=2, differentiable=[0, 1])
    reject_second_derivative("box_loss_backward")
    register_fake("box_loss")(
        lambda pred, target, kind, ltrb, smooth, eps: pred.new_empty(
            pred.shape[:-1], dtype=sum_type(pred.dtype)
        )
    )
    register_fake("box_loss_sum")(
        lambda pred, target, kind, ltrb, smooth, eps: pred.new_empty((), dtype=sum_type(pred.dtype))
    )
    register_fake("box_loss_backward")(
        lambda grad, pred, target, kind, ltrb, smooth, eps: pred.new_empty(pred.shape)
    )
