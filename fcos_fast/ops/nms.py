"""Greedy non-maximum suppression."""

from __future__ import annotations

import torch
from torch import Tensor

from fcos_fast import reference
from fcos_fast._extension import cpu_error, use_native
from fcos_fast.ops import _checks
from fcos_fast.ops._register import register_fake


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Keep a box unless a kept box of a higher score has an IoU greater than the threshold with it.

    Drop-in for ``torchvision.ops.nms``: the same boxes in the same order.

    Args:
        boxes: (N, 4) xyxy; float32, float64, bfloat16 or float16. IoU is computed in float32 (float64).
        scores: (N,) floating point. Of equal scores the lower index comes first; NaN counts as the greatest.
        iou_threshold: in [0, 1].

    Returns:
        int64 indices of the kept boxes by falling score.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or threshold.
    """
    _check("nms", boxes, scores, iou_threshold)
    if not use_native(boxes):
        return reference.nms(boxes, scores, iou_threshold)
    return torch.ops.fcos_fast.nms(boxes.detach(), scores.detach(), None, float(iou_threshold))


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """:func:`nms` within each group of equal ``idxs``, commonly the classes.

    Drop-in for ``torchvision.ops.batched_nms``. That adds an offset per class to the coordinates of up to some
    thousand boxes; here classes are compared as such, so results differ from it only where its rounding decided.

    Args:
        boxes, scores, iou_threshold: as in :func:`nms`.
        idxs: (N,) any integers, negative ones too.
    """
    op = "batched_nms"
    _check(op, boxes, scores, iou_threshold)
    _checks.check_same_device(op, boxes=boxes, idxs=idxs)
    _checks.check_integer(op, idxs=idxs)
    if idxs.shape != scores.shape:
        raise ValueError(
            f"{op}: idxs has shape {tuple(idxs.shape)}; expected {tuple(scores.shape)}, one per box"
        )
    if not use_native(boxes):
        return reference.batched_nms(boxes, scores, idxs, iou_threshold)
    return torch.ops.fcos_fast.nms(boxes.detach(), scores.detach(), idxs, float(iou_threshold))


def _check(op: str, boxes: Tensor, scores: Tensor, iou_threshold: float) -> None:
    _checks.check_same_device(op, boxes=boxes, scores=scores)
    _checks.check_float(op, boxes=boxes, scores=scores)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{op}: boxes has shape {tuple(boxes.shape)}; expected (N, 4)")
    if scores.shape != boxes.shape[:1]:
        raise ValueError(
            f"{op}: scores has shape {tuple(scores.shape)}; expected {(boxes.shape[0],)}, one per box"
        )
    if not 0 <= iou_threshold <= 1:
        raise ValueError(f"{op}: iou_threshold={iou_threshold}; expected a number in [0, 1]")


if cpu_error is None:

    @register_fake("nms")
    def _fake_nms(boxes, scores, idxs, iou_threshold):
        return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)
