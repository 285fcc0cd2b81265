"""Detections in COCO's result format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .categories import Categories

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def coco_detections(
    image_id: int | str, detection: Mapping[str, ArrayLike], categories: Categories
) -> list[dict[str, Any]]:
    """The detections of one image as in a COCO results file: the dataset's category ids, boxes as xywh.

    Args:
        image_id: id of the image in the COCO file of the dataset.
        detection: ``boxes`` (N, 4) xyxy in pixels, ``labels`` (N,) and ``scores`` (N,): arrays, or tensors on the CPU.
        categories: classes of the labels.
    """
    boxes, labels, scores = (np.asarray(detection[name]) for name in ("boxes", "labels", "scores"))
    rows = zip(boxes.astype(np.float64).tolist(), labels.tolist(), scores.tolist(), strict=True)
    return [
        {
            "image_id": image_id,
            "category_id": categories.ids[label],
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": score,
        }
        for (x1, y1, x2, y2), label, score in rows
    ]
