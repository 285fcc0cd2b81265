"""Target assignment with dense (locations x boxes) matrices, as in the published implementations."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from fcos_fast.assignment import BACKGROUND, MAX_AREA, MAX_LABEL, AssignmentRule, GroundTruth, Level, Targets
from fcos_fast.reference.centerness import centerness


def _candidates(points: Tensor, boxes: Tensor, level: Level, rule: AssignmentRule) -> tuple[Tensor, Tensor]:
    """(P, M) mask of the boxes that each location of a level can be assigned to, and the (P, M, 4) ltrb distances."""
    x, y = points[:, None, 0], points[:, None, 1]
    x1, y1, x2, y2 = boxes.unbind(-1)
    ltrb = torch.stack((x - x1, y - y1, x2 - x, y2 - y), dim=-1)
    inside = ltrb.amin(-1) > 0

    reach = rule.radius * level.stride
    cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
    if rule.sampling == "center_clipped":
        left, right = torch.maximum(cx - reach, x1), torch.minimum(cx + reach, x2)
        top, bottom = torch.maximum(cy - reach, y1), torch.minimum(cy + reach, y2)
        inside = torch.stack((x - left, y - top, right - x, bottom - y)).amin(0) > 0
    elif rule.sampling == "center":
        inside &= torch.maximum((x - cx).abs(), (y - cy).abs()) < reach
    elif rule.sampling == "circle":
        inside &= ((x - cx) ** 2 + (y - cy) ** 2).sqrt() < reach

    longest = ltrb.amax(-1)
    lower, upper = level.size_range
    above = longest >= lower if rule.range_test == "closed" else longest > lower
    below = longest < upper if rule.range_test == "open" else longest <= upper
    return inside & above & below, ltrb


def _choose(allowed: Tensor, boxes: Tensor, rule: AssignmentRule) -> Tensor:
    """(P,) index of the box that each location is assigned to, or -1."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    preference = MAX_AREA - areas if rule.tie_break == "quantized_area" else -areas
    worst = 0.0 if rule.tie_break == "quantized_area" else -MAX_AREA
    preference = torch.where(allowed, preference, worst)
    best = preference.amax(dim=1)
    # The first of equal maxima; argmax alone may return any of them.
    first = (preference == best[:, None]).int().argmax(dim=1)
    return torch.where(best > worst, first, -1)


def assign_targets(gt: GroundTruth, levels: Sequence[Level], rule: AssignmentRule) -> Targets:
    """See :func:`fcos_fast.ops.assign_targets`."""
    starts = gt.starts.tolist()
    matched_parts, ltrb_parts = [], []
    for begin, end in pairwise(starts):
        boxes = gt.boxes[begin:end].float()
        for level in levels:
            points = level.points(boxes.device)
            if begin == end:
                matched_parts.append(torch.full((len(points),), -1, device=boxes.device))
                ltrb_parts.append(points.new_zeros((len(points), 4)))
                continue
            allowed, distances = _candidates(points, boxes, level, rule)
            chosen = _choose(allowed, boxes, rule)
            own = distances[torch.arange(len(points), device=boxes.device), chosen]
            ltrb_parts.append(torch.where((chosen >= 0)[:, None], own, 0.0))
            matched_parts.append(torch.where(chosen >= 0, chosen + begin, -1))

    batch = len(starts) - 1
    matched = torch.cat(matched_parts).reshape(batch, -1)  # (B, P)
    ltrb = torch.cat(ltrb_parts).reshape(batch, -1, 4)  # (B, P, 4)
    positive = matched >= 0
    labels = torch.full_like(matched, BACKGROUND)
    labels[positive] = gt.labels[matched[positive]]
    quality = centerness(ltrb)
    totals = torch.stack((positive.sum().double(), quality.sum(dtype=torch.float64)))
    return Targets(labels.clamp(max=MAX_LABEL).int(), matched.int(), ltrb, quality, totals.float())
