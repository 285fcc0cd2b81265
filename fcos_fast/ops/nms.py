"""Greedy non-maximum suppression."""

from __future__ import annotations

import torch
from torch import Tensor

from fcos_fast import reference
from fcos_fast._extension import cpu_error, use_native
from fcos_fast.ops import _checks
from fcos_fast.ops._register import register_fake


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Greedy non-maximum suppression: drop a box if its IoU with a kept box of a higher score exceeds the threshold.

    Drop-in for ``torchvision.ops.nms``. On every device, the result is equal to that of torchvision's CPU operator.
    torchvision's CUDA kernel rounds the threshold to float32 and may fuse products and sums; results agree with it
    except for IoUs within one unit in the last place of the threshold.

    Args:
        boxes: (N, 4) xyxy; float32, float64, bfloat16 or float16. IoU is computed in float32 (float64).
        scores: (N,) floating point. Equal scores keep their input order; NaN sorts as the greatest.
        iou_threshold: in [0, 1].

    Returns:
        int64 indices of the kept boxes, in descending score order.

    Raises:
        TypeError: wrong dtype.
        ValueError: wrong shape, device or threshold.
    """
    _check("nms", boxes, scores, iou_threshold)
    if not use_native(boxes):
        return reference.nms(boxes, scores, iou_threshold)
    return torch.ops.fcos_fast.nms(boxes.detach(), scores.detach(), None, float(iou_threshold))


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """:func:`nms` within each group of equal ``idxs``, usually the classes.

    Drop-in for ``torchvision.ops.batched_nms``. For up to several thousand boxes, torchvision separates the classes by
    adding ``idx * (max_coordinate + 1)`` to the coordinates. This operator compares ``idxs`` directly. Results differ
    if the rounding of these sums matters, and for negative coordinates: there torchvision's offset can be too small, so
    that boxes of different classes suppress each other.

    Args:
        boxes: (N, 4) xyxy, as in :func:`nms`.
        scores: (N,) floating point, as in :func:`nms`.
        idxs: (N,) group of each box: any integers, including negative ones.
        iou_threshold: in [0, 1].

    Returns:
        int64 indices of the kept boxes, in descending score order.

    Raises:
        TypeError: wrong dtype.
        ValueError: wrong shape, device or threshold.
    """
    op = "batched_nms"
    _check(op, boxes, scores, iou_threshold)
    _checks.check_same_device(op, boxes=boxes, idxs=idxs)
    _checks.check_integer(op, idxs=idxs)
    _checks.check_one_per_box(op, boxes, idxs=idxs)
    if not use_native(boxes):
        return reference.batched_nms(boxes, scores, idxs, iou_threshold)
    return torch.ops.fcos_fast.nms(boxes.detach(), scores.detach(), idxs, float(iou_threshold))


def nms_padded(
    boxes: Tensor, scores: Tensor, labels: Tensor | None, iou_threshold: float, max_detections: int
) -> tuple[Tensor, Tensor]:
    """:func:`batched_nms` for each image in a batch, with results of fixed size.

    Never synchronizes, so it works inside ``torch.compile``, ``torch.export`` and CUDA graphs. It stops at the
    ``max_detections``-th kept box, so a small number is fast for any number of candidates.

    Args:
        boxes: (B, N, 4) xyxy; float32, float64, bfloat16 or float16. IoU is computed in float32 (float64).
        scores: (B, N) floating point, in any order; -inf marks padding, which is never returned. Equal scores keep
            their input order; NaN sorts as the greatest.
        labels: (B, N) any integers; boxes with different labels never suppress each other. None: a single class.
        iou_threshold: in [0, 1].
        max_detections: D, the maximum number of kept boxes per image.

    Returns:
        ``indices`` (B, D) int64: the kept boxes of each image in descending score order, padded with -1. ``counts``
        (B,) int64: their number.

    Raises:
        TypeError: wrong dtype.
        ValueError: wrong shape, device or number.

    Example:
        >>> indices, counts = nms_padded(boxes, scores, labels, 0.6, 100)
        >>> kept = boxes.gather(1, indices.clamp(min=0)[..., None].expand(-1, -1, 4))  # (B, D, 4)
    """
    op = "nms_padded"
    _checks.check_same_device(
        op, boxes=boxes, scores=scores, **({} if labels is None else {"labels": labels})
    )
    _checks.check_float(op, boxes=boxes, scores=scores)
    _checks.check_boxes(op, "(B, N, 4)", boxes=boxes)
    _checks.check_one_per_box(op, boxes, scores=scores)
    if labels is not None:
        _checks.check_integer(op, labels=labels)
        _checks.check_one_per_box(op, boxes, labels=labels)
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
    _checks.check_boxes(op, "(N, 4)", boxes=boxes)
    _checks.check_one_per_box(op, boxes, scores=scores)
    _checks.check_unit_interval(op, iou_threshold=iou_threshold)


if cpu_error is None:

    @register_fake("nms")
    def _fake_nms(boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float) -> Tensor:
        return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)

    @register_fake("nms_padded")
    def _fake_nms_padded(
        boxes: Tensor, scores: Tensor, labels: Tensor | None, iou_threshold: float, max_detections: int
    ) -> tuple[Tensor, Tensor]:
        batch = boxes.shape[0]
        return (
            boxes.new_empty((batch, max_detections), dtype=torch.int64),
            boxes.new_empty((batch,), dtype=torch.int64),
        )
