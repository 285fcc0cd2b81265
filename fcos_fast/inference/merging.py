"""Detections of several views of an image, merged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fcos_fast.inference.engine import RawDetections

MERGE_IOU = 0.5
"""IoU above which two boxes of one class from different views are the same object.

Lower than that of most models, because an object's boxes differ more between views than within one.
"""


def merged(views: Sequence[RawDetections], iou_threshold: float = MERGE_IOU) -> RawDetections:
    """The detections of all views, in pixels of one image, after one class-wise NMS."""
    boxes, scores, labels = (np.concatenate(parts) for parts in zip(*views, strict=True))
    kept = batched_nms(boxes, scores, labels, iou_threshold)
    return RawDetections(boxes[kept], scores[kept], labels[kept])


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
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    pending = np.argsort(-scores, kind="stable")
    kept = []
    while len(pending):
        best, pending = pending[0], pending[1:]
        kept.append(best)
        low = np.maximum(boxes[best, :2], boxes[pending, :2])
        high = np.minimum(boxes[best, 2:], boxes[pending, 2:])
        intersection = (high - low).clip(min=0).prod(axis=1)
        with np.errstate(invalid="ignore"):  # two boxes without area: NaN, which suppresses nothing
            iou = intersection / (areas[best] + areas[pending] - intersection)
        # Compare in float64: the float32 number 0.6 is greater than the float64 threshold 0.6.
        suppressed = (iou.astype(np.float64) > iou_threshold) & (labels[pending] == labels[best])
        pending = pending[~suppressed]
    return np.array(kept, dtype=np.int64)
