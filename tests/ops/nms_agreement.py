"""Compares two results of greedy non-maximum suppression up to rounding.

On the CPU, ``fcos_fast.ops.nms`` and torchvision's operator return the same indices. torchvision's CUDA kernel compares
with a float32 threshold, and its compiler may fuse a multiplication and an addition. So an IoU near the threshold can
end up on the other side, which affects all boxes with lower scores. Therefore each result is checked against the
definition: it must be a greedy result for some decision about the pairs of boxes whose IoU is within one unit in the
last place of the threshold. If two such results differ, they first differ at such a pair.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 2**24  # pairs of boxes per step


def assert_agree(
    kept: Tensor,
    expected: Tensor,
    boxes: Tensor,
    scores: Tensor,
    iou_threshold: float,
    idxs: Tensor | None = None,
) -> None:
    """Assert equal indices, except for IoUs within one unit in the last place of the threshold."""
    if not torch.equal(kept, expected):
        for result in (kept, expected):
            assert_greedy(result, boxes, scores, iou_threshold, idxs)


def assert_greedy(
    kept: Tensor, boxes: Tensor, scores: Tensor, iou_threshold: float, idxs: Tensor | None = None
) -> None:
    """Assert that ``kept`` is a greedy result, except for IoUs within one unit in the last place of the threshold."""
    order = torch.argsort(scores, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    assert (rank[kept].diff() > 0).all(), "kept boxes are not in the order of their scores, or not distinct"
    is_kept = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    is_kept[kept] = True
    unit = torch.finfo(boxes.dtype if boxes.dtype == torch.float64 else torch.float32)
    ulp = _unit_in_the_last_place(iou_threshold, unit.eps)
    suppressed = torch.zeros_like(is_kept)  # certainly or possibly, by a kept box
    for some in kept.split(max(1, CHUNK // max(1, len(boxes)))):
        may_suppress = rank[some][:, None] < rank  # (K, N)
        if idxs is not None:
            may_suppress &= idxs[some][:, None] == idxs
        low, high = _iou_bounds(boxes[some], boxes)
        wrong = may_suppress & is_kept & (low > iou_threshold + ulp)
        if wrong.any():
            i, j = (int(x) for x in wrong.nonzero()[0])
            off = (float(low[i, j]) - iou_threshold) / ulp
            raise AssertionError(
                f"boxes {int(some[i])} and {j} are both kept, whose IoU is {off:.1f} units in the last place above "
                f"the threshold {iou_threshold}"
            )
        suppressed |= (may_suppress & (high >= iou_threshold - ulp)).any(0)
    missing = ~(suppressed | is_kept)
    assert not missing.any(), (
        f"box {int(missing.nonzero()[0])} is missing, though no kept box of a higher score has an IoU with it that is "
        f"greater than the threshold {iou_threshold} or within one unit in the last place of it"
    )


def _unit_in_the_last_place(x: float, eps: float) -> float:
    """Distance of ``x`` to the next number of a type with machine epsilon ``eps``."""
    return float(torch.tensor(x, dtype=torch.float64).frexp().exponent.exp2()) / 2 * eps


def _iou_bounds(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """(K, N) float64: minimum and maximum of the exact IoU and the IoU as rounded by the operators."""
    computed = b.dtype if b.dtype == torch.float64 else torch.float32
    ious = [_iou(a.to(dtype), b.to(dtype)).double() for dtype in (torch.float64, computed)]
    return torch.minimum(*ious), torch.maximum(*ious)


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """(K, N) IoU, rounded after each operation; -inf if boxes do not overlap or a coordinate is NaN."""
    ax1, ay1, ax2, ay2 = a[:, None].unbind(-1)
    bx1, by1, bx2, by2 = b.unbind(-1)
    width = torch.minimum(ax2, bx2) - torch.maximum(ax1, bx1)
    height = torch.minimum(ay2, by2) - torch.maximum(ay1, by1)
    intersection = width * height
    iou = intersection / ((ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - intersection)
    return torch.where((width > 0) & (height > 0), iou, -torch.inf)
