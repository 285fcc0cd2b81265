"""From the head's outputs to detections: threshold, top-k, decoding, clipping, NMS."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fcos_fast import ops
from fcos_fast.assignment import Level


def postprocess(
    cls_logits: Sequence[Tensor],
    box_regression: Sequence[Tensor],
    centerness: Sequence[Tensor],
    levels: Sequence[Level],
    sizes: Sequence[tuple[int, int]],
    *,
    units: Sequence[float],
    score_threshold: float = 0.05,
    threshold_on: str = "classification",
    topk_candidates: int = 1000,
    nms_threshold: float = 0.6,
    max_detections: int = 100,
    inclusive_boxes: bool = False,
) -> list[dict[str, Tensor]]:
    """Detections of a batch, the score being sqrt(classification * centerness).

    Args:
        cls_logits, box_regression, centerness: per level (B, C, H, W), (B, 4, H, W), (B, 1, H, W), as
            :class:`fcos_fast.models.HeadOutputs` describes them.
        levels: where the locations stand.
        sizes: (height, width) of each image without padding; boxes are clipped to it.
        units: pixels per unit of ``box_regression``, per level.
        score_threshold, threshold_on, topk_candidates, nms_threshold, max_detections, inclusive_boxes: see
            :class:`fcos_fast.models.FCOSConfig`.

    Returns:
        One dict per image: ``boxes`` (N, 4) float32 xyxy in pixels of the resized image, ``scores`` (N,)
        float32 in descending order, ``labels`` (N,) int64.
    """
    last_pixel = 1 if inclusive_boxes else 0
    detections = []
    for b, (height, width) in enumerate(sizes):
        candidates = [
            _candidates(
                logits[b],
                distances[b],
                quality[b],
                level,
                unit,
                score_threshold,
                threshold_on,
                topk_candidates,
            )
            for logits, distances, quality, level, unit in zip(
                cls_logits, box_regression, centerness, levels, units, strict=True
            )
        ]
        boxes, scores, labels = (torch.cat(parts) for parts in zip(*candidates, strict=True))
        boxes[:, 0::2].clamp_(0, width - last_pixel)
        boxes[:, 1::2].clamp_(0, height - last_pixel)
        # With inclusive ends a box's sides are one longer than their difference, in areas and in overlaps
        # alike.
        suppressable = torch.cat((boxes[:, :2], boxes[:, 2:] + last_pixel), dim=1)
        keep = ops.batched_nms(suppressable, scores, labels, nms_threshold)[:max_detections]
        detections.append({"boxes": boxes[keep], "scores": scores[keep], "labels": labels[keep]})
    return detections


def _candidates(
    cls_logits: Tensor,
    box_regression: Tensor,
    centerness: Tensor,
    level: Level,
    unit: float,
    score_threshold: float,
    threshold_on: str,
    topk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (N, 4), scores (N,) and labels (N,) of one level of one image; maps without batch dimension."""
    # No score can pass whose classification alone does not, so that few logits need a sigmoid. The margin
    # leaves what is within rounding's reach to the exact comparison.
    lowest = score_threshold**2 if threshold_on == "score" else score_threshold
    margin = 0.01
    promising = cls_logits >= _logit(lowest) - margin  # (C, H, W)
    y, x, labels = promising.permute(1, 2, 0).nonzero().unbind(1)  # location after location

    dtype = torch.promote_types(cls_logits.dtype, torch.float32)
    probability = cls_logits[labels, y, x].to(dtype).sigmoid()
    scores = (probability * centerness[0, y, x].to(dtype).sigmoid()).sqrt()
    passing = (scores if threshold_on == "score" else probability) > score_threshold
    scores, best = scores.masked_fill(~passing, -1.0).sort(descending=True, stable=True)
    scores = scores[:topk]
    scores = scores[scores >= 0]
    best = best[: len(scores)]

    y, x = y[best], x[best]
    left, top, right, bottom = box_regression[:, y, x].to(dtype) * unit  # (N,) each
    x = level.offset[1] + level.step[1] * x
    y = level.offset[0] + level.step[0] * y
    boxes = torch.stack((x - left, y - top, x + right, y + bottom), dim=1)
    return boxes, scores, labels[best]


def _logit(p: float) -> float:
    if p <= 0:
        return -math.inf
    return math.inf if p >= 1 else math.log(p / (1 - p))
