"""Greedy non-maximum suppression."""

from __future__ import annotations

import torch
from torch import Tensor

from fcos_fast import reference
from fcos_fast._extension import cpu_error, use_native
from fcos_fast.ops import _checks
from fcos_fast.ops._checks import ArgumentValueError
from fcos_fast.ops._register import register_fake


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Keep a box unless a kept box of a higher score has an IoU greater than the threshold with it.

    Drop-in for ``torchvision.ops.nms``. The result equals that of torchvision's CPU operator, on every device. On CUDA
    torchvision's own kernel rounds the threshold to float32 and may round products and sums together; results are equal
    but for IoUs within one unit in the last place of the threshold.

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

    Drop-in for ``torchvision.ops.batched_nms``. Up to some thousand boxes, torchvision separates the classes by adding
    ``idx * (max_coordinate + 1)`` to the coordinates. Here classes are compared as such, so results differ where
    the rounding of the sums decided, and where coordinates are negative: then the offset can be too small, and boxes of
    different classes suppress each other in torchvision.

    Args:
        boxes, scores, iou_threshold: as in :func:`nms`.
        idxs: (N,) any integers, negative ones too.
    """
    op = "batched_nms"
    _check(op, boxes, scores, iou_threshold)
    _checks.check_same_device(op, boxes=boxes, idxs=idxs)
    _checks.check_integer(op, idxs=idxs)
    if idxs.shape != scores.shape:
        raise ArgumentValueError(
            f"{op}: idxs has shape {tuple(idxs.shape)}; expected {tuple(scores.shape)}, one per box"
        )
    if not use_native(boxes):
        return reference.batched_nms(boxes, scores, idxs, iou_threshold)
    return torch.ops.fcos_fast.nms(boxes.detach(), scores.detach(), idxs, float(iou_threshold))


def nms_padded(
    boxes: Tensor, scores: Tensor, labels: Tensor | None, iou_threshold: float, max_detections: int
) -> tuple[Tensor, Tensor]:
    """:func:`batched_nms` of each image of a batch, in results of fixed size.

    The host never waits for a GPU, so ``torch.compile``, ``torch.export`` and CUDA graphs can hold it. It ends with the
    ``max_detections``-th kept box, so a small number is fast whatever the number of candidates.

    Args:
        boxes: (B, N, 4) xyxy; float32, float64, bfloat16 or float16. IoU is computed in float32 (float64).
        scores: (B, N) floating point, in any order; -inf marks an entry as padding, which is never returned. Of equal
            scores the lower index comes first; NaN counts as the greatest.
        labels: (B, N) any integers; boxes of different labels never suppress each other. None: all are one class.
        iou_threshold: in [0, 1].
        max_detections: D, kept boxes per image.

    Returns:
        ``indices`` (B, D) int64: the kept boxes of each image by falling score, -1 beyond them. ``counts`` (B,) int64:
        how many these are.

    Raises:
        TypeError, ValueError: wrong dtype, shape, device or number.

    Example:
        >>> indices, counts = nms_padded(boxes, scores, labels, 0.6, 100)
        >>> kept = boxes.gather(1, indices.clamp(min=0)[..., None].expand(-1, -1, 4))  # (B, D, 4)
    """
    op = "nms_padded"
    _checks.check_same_device(
        op, boxes=boxes, scores=scores, **({} if labels is None else {"labels": labels})
    )
    _checks.check_float(op, boxes=boxes, scores=scores)
    if boxes.ndim != 3 or boxes.shape[2] != 4:
        raise ArgumentValueError(f"{op}: boxes has shape {tuple(boxes.shape)}; expected (B, N, 4)")
    if labels is not None:
        _checks.check_integer(op, labels=labels)
    for name, tensor in (("scores", scores), ("labels", labels)):
        if tensor is not None and tensor.shape != boxes.shape[:2]:
            raise ArgumentValueError(
                f"{op}: {name} has shape {tuple(tensor.shape)}; expected {tuple(boxes.shape[:2])}, one per box"
            )
    _checks.check_unit_interval(op, iou_threshold=iou_threshold)
    _checks.check_positive(op, max_detections=max_detections)
    if not use_native(boxes, scores):
        return reference.nms_padded(boxes, scores, labels, iou_threshold, max_detections)
    return torch.ops.fcos_fast.nms_padded(
        boxes.detach(), scores.detach(), labels, float(iou_threshold), max_detections
    )


def _check(op: str, boxes: Tensor, scores: Tensor, iou_threshold: float) -> None:
    _checks.check_same_device(op, boxes=boxes, scores=scores)
    _checks.check_float(op, boxes=boxes, scores=scores)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ArgumentValueError(f"{op}: boxes has shape {tuple(boxes.shape)}; expected (N, 4)")
    if scores.shape != boxes.shape[:1]:
        raise ArgumentValueError(
            f"{op}: scores has shape {tuple(scores.shape)}; expected {(boxes.shape[0],)}, one per box"
        )
    _checks.check_unit_interval(op, iou_threshold=iou_threshold)


if cpu_error is None:

    @register_fake("nms")
    def _fake_nms(boxes, scores, idxs, iou_threshold):
        return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)

    @register_fake("nms_padded")
    def _fake_nms_padded(boxes, scores, labels, iou_threshold, max_detections):
        batch = boxes.shape[0]
        return (
            boxes.new_empty((batch, max_detections), dtype=torch.int64),
            boxes.new_empty((batch,), dtype=torch.int64),
        )
