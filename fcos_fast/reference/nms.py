"""Greedy non-maximum suppression, with every IoU rounded as in torchvision's CPU operator."""

import torch
from torch import Tensor


def _suppress(boxes: Tensor, scores: Tensor, idxs: Tensor | None, iou_threshold: float) -> Tensor:
    dtype = torch.float64 if boxes.dtype == torch.float64 else torch.float32
    order = torch.argsort(scores, descending=True, stable=True)
    boxes = boxes[order].to(dtype)
    idxs = None if idxs is None else idxs[order]
    x1, y1, x2, y2 = boxes.unbind(-1)
    areas = (x2 - x1) * (y2 - y1)

    alive = torch.ones_like(order, dtype=torch.bool)
    for i in range(len(order)):
        if not alive[i]:
            continue
        w = (torch.minimum(x2[i], x2[i + 1 :]) - torch.maximum(x1[i], x1[i + 1 :])).clamp(min=0)
        h = (torch.minimum(y2[i], y2[i + 1 :]) - torch.maximum(y1[i], y1[i + 1 :])).clamp(min=0)
        intersection = w * h
        iou = intersection / (areas[i] + areas[i + 1 :] - intersection)
        # Compare in float64: the float32 number 0.6 is greater than the float64 threshold 0.6.
        suppressed = iou.double() > iou_threshold
        if idxs is not None:
            suppressed &= idxs[i + 1 :] == idxs[i]
        alive[i + 1 :] &= ~suppressed
    return order[alive]


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """See :func:`fcos_fast.ops.nms`."""
    return _suppress(boxes, scores, None, iou_threshold)


def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    """See :func:`fcos_fast.ops.batched_nms`."""
    return _suppress(boxes, scores, idxs, iou_threshold)


def nms_padded(
    boxes: Tensor, scores: Tensor, labels: Tensor | None, iou_threshold: float, max_detections: int
) -> tuple[Tensor, Tensor]:
    """See :func:`fcos_fast.ops.nms_padded`."""
    indices = torch.full((len(boxes), max_detections), -1, device=boxes.device)
    counts = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    for b in range(len(boxes)):
        real = (scores[b] != -torch.inf).nonzero()[:, 0]
        idxs = None if labels is None else labels[b, real]
        kept = real[_suppress(boxes[b, real], scores[b, real], idxs, iou_threshold)[:max_detections]]
        indices[b, : len(kept)] = kept
        counts[b] = len(kept)
    return indices, counts
