"""Detections of several views of an image, merged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fcos_fast.inference.engine import RawDetections


def merged(views: Sequence[RawDetections], iou_threshold: float, average: bool = False) -> RawDetections:
    """The detections of all views, in pixels of one image, after one class-wise NMS.

    Args:
        views: the detections of each view.
        iou_threshold: IoU above which a box suppresses one with a lower score.
        average: replace each kept box by the mean, weighted with the scores, of all boxes of its class whose IoU with
            it exceeds the threshold: "box voting" (Gidaris and Komodakis, 2015).
    """
    boxes, scores, labels = (np.concatenate(parts) for parts in zip(*views, strict=True))
    kept = batched_nms(boxes, scores, labels, iou_threshold)
    chosen = _averages(boxes, scores, labels, kept, iou_threshold) if average else boxes[kept]
    return RawDetections(chosen, scores[kept], labels[kept])


def _averages(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, kept: np.ndarray, iou_threshold: float
) -> np.ndarray:
    averages, weights = boxes[kept], scores.astype(np.float64)
    for row, best in enumerate(kept):
        others = (_iou(boxes[best], boxes) > iou_threshold) & (labels == labels[best])
        if weights[others].sum() > 0:  # a box without area has no IoU, not even with itself
            averages[row] = np.average(boxes[others], axis=0, weights=weights[others])
    return averages


def batched_nms(
    boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray, iou_threshold: float
) -> np.ndarray:
    """:func:`fcos_fast.ops.batched_nms` in NumPy, with the same result, where torch may not be installed.

    Args:
        boxes: (N, 4) float32, xyxy.
        scores: (N,) float32; equal scores keep their input order.
        labels: (N,); boxes with different labels never suppress each other.
        iou_threshold: in [0, 1].

    Returns:
        int64 indices of the kept boxes, in descending score order.
    """
    neighbors = _Neighbors(boxes)
    pending, kept = np.ones(len(boxes), dtype=bool), []
    for best in np.argsort(-scores, kind="stable"):
        if pending[best]:
            kept.append(best)
            pending[best] = False
            near = neighbors.of(boxes[best])
            near = near[pending[near] & (labels[near] == labels[best])]
            pending[near[_iou(boxes[best], boxes[near]) > iou_threshold]] = False
    return np.array(kept, dtype=np.int64)


class _Neighbors:
    """Finds the boxes that may overlap a given one: of thousands of small boxes, a few.

    Boxes are sorted by x1. A box that overlaps the given one begins left of its end, and not further left of its
    beginning than the widest box is wide. Very wide boxes are in a group of their own, for the others' range is short.
    """

    def __init__(self, boxes: np.ndarray) -> None:
        widths = boxes[:, 2] - boxes[:, 0]
        is_wide = widths > 4 * np.median(widths) if len(widths) else np.zeros(0, dtype=bool)
        by_x1 = np.argsort(boxes[:, 0])
        self.groups = [
            (group, boxes[group, 0], widths[group].max())
            for group in (by_x1[~is_wide[by_x1]], by_x1[is_wide[by_x1]])
            if len(group)
        ]

    def of(self, box: np.ndarray) -> np.ndarray:
        """Indices of the boxes that may overlap ``box``."""
        parts = []
        for group, x1, widest in self.groups:
            start, end = np.searchsorted(x1, (box[0] - widest - 1, box[2] + 1))  # 1 is more than rounding
            parts.append(group[start:end])
        return np.concatenate(parts)


def _iou(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """IoU of a box with each of the others, (N,) float64, rounded to float32; NaN for two boxes without area."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    intersection = (high - low).clip(min=0).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1)
    with np.errstate(invalid="ignore"):
        iou = intersection / ((box[2:] - box[:2]).prod() + areas - intersection)
    # Thresholds compare in float64: the float32 number 0.6 is greater than the float64 threshold 0.6.
    return iou.astype(np.float64)
