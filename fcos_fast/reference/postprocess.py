"""Post-processing: score threshold, top-k, box decoding, clipping and NMS."""

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
    if score == "classification":
        centerness = None
    elif centerness is None:
        raise TypeError(f"centerness is None; score={score!r} requires one map per level")
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
            if centerness is not None:
                scores = scores * _sigmoid(centerness[i][b].flatten()[:, None], dtype)
            if score == "sqrt":
                scores = scores.sqrt()
            passing = (scores if threshold_on == "score" else probabilities) > score_threshold
            passing &= ~scores.isnan()
            if not multi_label and cls_logits[i].shape[1] > 0:
                passing &= _best_class(cls_logits[i][b])
            location, labels = passing.nonzero().unbind(1)  # in location order
            boxes = _decode(location, box_regression[i][b].to(dtype) * unit, level)
            ranks = scores if topk_by == "score" else probabilities
            candidates = (ranks[location, labels], scores[location, labels], labels, boxes)
            per_level.append(_best(candidates, topk_candidates) if topk_over == "level" else candidates)
        together = tuple(torch.cat(parts) for parts in zip(*per_level, strict=True))
        _, scores, labels, boxes = _best(together, topk_candidates) if topk_over == "image" else together

        clipped = boxes.clamp(min=0).minimum(limits[b].flip(0).repeat(2))
        compared = clipped if clip == "before_nms" else boxes
        # Inclusive boxes are one pixel larger, in areas and in overlaps.
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
    """Sigmoid in float64: in float32, torch rounds differently in the vectorized loop and its remainder."""
    return logits.double().sigmoid().to(dtype)


def _best_class(cls_logits: Tensor) -> Tensor:
    """(HW, C) mask of the greatest logit at each location, the first of equals; NaN is ignored."""
    flat = cls_logits.flatten(1).t()
    best = flat.masked_fill(flat.isnan(), -torch.inf).argmax(dim=1)
    return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, best[:, None], True)


def _decode(location: Tensor, ltrb: Tensor, level: Level) -> Tensor:
    """Decode the boxes (N, 4) of locations (N,) from the (4, H, W) map of distances in pixels."""
    left, top, right, bottom = ltrb.flatten(1)[:, location]
    x = level.offset[1] + level.step[1] * (location % max(1, level.width)).to(ltrb.dtype)
    y = level.offset[0] + level.step[0] * (location // max(1, level.width)).to(ltrb.dtype)
    return torch.stack((x - left, y - top, x + right, y + bottom), dim=1)


def _best(candidates: tuple[Tensor, ...], count: int) -> tuple[Tensor, ...]:
    """The ``count`` candidates with the highest ranks (the first of equals), in their original order."""
    order = candidates[0].argsort(descending=True, stable=True)[:count].sort().values
    return tuple(values[order] for values in candidates)
