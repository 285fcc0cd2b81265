"""What runs a model: images in, boxes out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np

from fcos_fast.data.categories import Categories


class RawDetections(NamedTuple):
    """The detections of one image, highest score first.

    Attributes:
        boxes: (N, 4) float32, xyxy in pixels of the image.
        scores: (N,) float32 in 0..1, descending.
        labels: (N,) int64 in 0..C-1.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


class Engine(Protocol):
    """A model that detects objects: resizes, normalizes, predicts, suppresses.

    Attributes:
        categories: classes of the model.
        iou_threshold: IoU above which the model lets a box suppress one with a lower score, in 0..1.
    """

    categories: Categories
    iou_threshold: float

    def detect(self, images: Sequence[np.ndarray]) -> list[RawDetections]:
        """Detect objects in each image of a batch.

        Args:
            images: at least one upright RGB image (H, W, 3), uint8 or float32 in [0, 1]; sizes may differ.
        """
        ...
