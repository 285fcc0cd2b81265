"""RetinaNet's matching of anchors to boxes with the dense (boxes x anchors) IoU matrix."""

from itertools import pairwise

import torch
from torch import Tensor

from fcos_fast.assignment import BACKGROUND, IGNORED, MAX_LABEL, AnchorMatches, GroundTruth


def _box_area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _box_iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """(M, A) IoU; 0 for anchors with zero area or a NaN."""
    low = torch.maximum(boxes[:, None, :2], anchors[:, :2])
    high = torch.minimum(boxes[:, None, 2:], anchors[:, 2:])
    w, h = (high - low).unbind(-1)
    overlap = (w > 0) & (h > 0)
    intersection = w * h
    union = _box_area(boxes)[:, None] + _box_area(anchors) - intersection
    return torch.where(overlap, intersection / union, 0.0)


def _match(
    boxes: Tensor,
    anchors: Tensor,
    high_threshold: float,
    low_threshold: float,
    low_quality: str,
    min_pos_iou: float,
) -> Tensor:
    """(A,) row of ``boxes`` that each anchor is matched to, -1 background, -2 ignored."""
    areas = _box_area(boxes)
    rows = ((boxes[:, 2:] > boxes[:, :2]).all(1) & (areas > 0) & areas.isfinite()).nonzero()[:, 0]
    if len(rows) == 0 or len(anchors) == 0:
        return torch.full((len(anchors),), BACKGROUND, device=anchors.device)
    iou = _box_iou(boxes[rows], anchors)
    best = iou.amax(dim=0)  # (A,)
    # The first of equal maxima; argmax alone may return any of them.
    own = rows[(iou == best).int().argmax(dim=0)]
    matched = torch.where(best < high_threshold, IGNORED, own)
    matched = torch.where(best < low_threshold, BACKGROUND, matched)
    if low_quality == "none":
        return matched
    of_boxes = iou.amax(dim=1, keepdim=True)  # (M, 1)
    claimed = (iou == of_boxes) & (of_boxes >= min_pos_iou)  # (M, A)
    last = rows[len(rows) - 1 - claimed.flip(0).int().argmax(dim=0)]
    return torch.where(claimed.any(dim=0), last if low_quality == "last_claim" else own, matched)


def match_anchors(
    anchors: Tensor,
    gt: GroundTruth,
    *,
    high_threshold: float = 0.5,
    low_threshold: float = 0.4,
    low_quality: str = "own_match",
    min_pos_iou: float = 0.0,
) -> AnchorMatches:
    """See :func:`fcos_fast.ops.match_anchors`."""
    matched_parts = []
    for begin, end in pairwise(gt.starts.tolist()):
        own = _match(gt.boxes[begin:end], anchors, high_threshold, low_threshold, low_quality, min_pos_iou)
        matched_parts.append(torch.where(own >= 0, own + begin, own))
    matched = torch.stack(matched_parts)  # (B, A)
    positive = matched >= 0
    labels = matched.clone()
    labels[positive] = gt.labels[matched[positive]]
    return AnchorMatches(labels.clamp(max=MAX_LABEL).int(), matched.int(), positive.sum().float())
