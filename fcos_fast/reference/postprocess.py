"""From a head's outputs to detections: threshold, top-k, decoding, clipping, NMS."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fcos_fast.assignment import Level
from fcos_fast.detections import BatchDetections
from fcos_fast.reference.nms import batched_nms


def postprocess(
    cls_logits: Sequence[Tensor],
    box_regression: Sequence[Tensor],
    centerness: Sequence[Tensor] | None,
    levels: Sequence[Level],
    sizes: Tensor | Sequence[tuple[int, int]],
    *,
    units: Sequence[float],
    score: str = "sqrt",
    score_threshold: float = 0.05,
    threshold_on: str = "classification",
    multi_label: bool = True,
    topk_candidates: int = 1000,
    topk_over: str = "level",
    topk_by: str = "score",
    iou_threshold: float = 0.6,
    class_agnostic: bool = False,
    max_detections: int = 100,
    inclusive_boxes: bool = False,
    clip: str = "before_nms",
    drop_empty: bool = False,
) -> BatchDetections:
    """See :func:`fcos_fast.ops.postprocess`."""
    batch, device = cls_logits[0].shape[0], cls_logits[0].device
    dtype = torch.promote_types(cls_logits[0].dtype, torch.float32)
    last_pixel = 1 if inclusive_boxes else 0
    limits = torch.as_tensor(sizes).reshape(-1, 2).to(device, dtype) - last_pixel
    found = BatchDetections(
        boxes=torch.zeros((batch, max_detections, 4), dtype=dtype, device=device),
        scores=torch.zeros((batch, max_detections), dtype=dtype, device=device),
        labels=torch.full((batch, max_detections), -1, device=device),
        counts=torch.zeros(batch, dtype=torch.int64, device=device),
    )
    for b in range(batch):
        per_level = []
        for i, (level, unit) in enumerate(zip(levels, units, strict=True)):
            probabilities = _sigmoid(cls_logits[i][b].permute(1, 2, 0).flatten(0, 1), dtype)  # (HW, C)
            scores = probabilities
            if score != "classification":
                scores = scores * _sigmoid(centerness[i][b].flatten()[:, None], dtype)
            if score == "sqrt":
                scores = scores.sqrt()
            passing = (scores if threshold_on == "score" else probabilities) > score_threshold
            passing &= ~scores.isnan()
            if not multi_label and cls_logits[i].shape[1] > 0:
                passing &= _best_class(cls_logits[i][b])
            location, labels = passing.nonzero().unbind(1)  # location after location
            boxes = _decode(location, box_regression[i][b].to(dtype) * unit, level)
            ranks = scores if topk_by == "score" else probabilities
            candidates = (ranks[location, labels], scores[location, labels], labels, boxes)
            per_level.append(_best(candidates, topk_candidates) if topk_over == "level" else candidates)
        together = tuple(torch.cat(parts) for parts in zip(*per_level, strict=True))
        _, scores, labels, boxes = _best(together, topk_candidates) if topk_over == "image" else together

        clipped = boxes.clamp(min=0).minimum(limits[b].flip(0).repeat(2))
        compared = clipped if clip == "before_nms" else boxes
        # With inclusive ends a box's sides are one longer than their difference, in areas and in overlaps
        # alike.
        suppressable = torch.cat((compared[:, :2], compared[:, 2:] + last_pixel), dim=1)
        if drop_empty:
            has_area = (suppressable[:, 2:] > suppressable[:, :2]).all(dim=1)
            scores, labels, clipped = scores[has_area], labels[has_area], clipped[has_area]
            suppressable = suppressable[has_area]
        groups = torch.zeros_like(labels) if class_agnostic else labels
        keep = batched_nms(suppressable, scores, groups, iou_threshold)[:max_detections]
        for padded, values in zip(found[:3], (clipped, scores, labels), strict=True):
            padded[b, : len(keep)] = values[keep]
        found.counts[b] = len(keep)
    return found


def _sigmoid(logits: Tensor, dtype: torch.dtype) -> Tensor:
    """Equal logits have equal scores wherever they lie; torch's vectors and what is left over round differently."""
    return logits.double().sigmoid().to(dtype)


def _best_class(cls_logits: Tensor) -> Tensor:
    """(C, H, W) logits to (HW, C) mask: the greatest of each location, the first of equals; NaN is none."""
    flat = cls_logits.flatten(1).t()
    best = flat.masked_fill(flat.isnan(), -torch.inf).argmax(dim=1)
    return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, best[:, None], True)


def _decode(location: Tensor, ltrb: Tensor, level: Level) -> Tensor:
    """Boxes (N, 4) of the locations (N,), whose distances in pixels are a map (4, H, W)."""
    left, top, right, bottom = ltrb.flatten(1)[:, location]
    x = level.offset[1] + level.step[1] * (location % max(1, level.width)).to(ltrb.dtype)
    y = level.offset[0] + level.step[0] * (location // max(1, level.width)).to(ltrb.dtype)
    return torch.stack((x - left, y - top, x + right, y + bottom), dim=1)


def _best(candidates: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]:
    """The ``count`` candidates of the highest ranks, the first of equals; in the order in which they come."""
    order = candidates[0].argsort(descending=True, stable=True)[:count].sort().values
    return tuple(values[order] for values in candidates)
