"""Engines whose detections are known without a network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fcos_fast.data.categories import Categories
from fcos_fast.inference import RawDetections

COLORS = {"red": (255, 0, 0), "green": (0, 255, 0)}


class ColorEngine:
    """Finds connected regions that are more red or green than anything else, by SciPy.

    The score of a region is its number of pixels, scaled to 0..1, so a part of an object has a lower score than the
    whole.

    Attributes:
        batches: the number of images of each call.
    """

    def __init__(self) -> None:
        self.categories = Categories(tuple(COLORS))
        self.iou_threshold = 0.6
        self.batches: list[int] = []

    def detect(self, images: Sequence[np.ndarray]) -> list[RawDetections]:
        self.batches.append(len(images))
        return [self._regions(image) for image in images]

    def _regions(self, image: np.ndarray) -> RawDetections:
        from scipy import ndimage

        assert image.ndim == 3
        assert image.shape[2] == 3
        assert image.dtype in (np.uint8, np.float32)
        white = 255 if image.dtype == np.uint8 else 1
        rows = []
        for label, color in enumerate(COLORS.values()):
            far = np.abs(image.astype(np.float64) / white - np.array(color) / 255).max(axis=2)
            numbered, _ = ndimage.label(far < 0.5)
            for y, x in ndimage.find_objects(numbered):
                area = (y.stop - y.start) * (x.stop - x.start)
                rows.append((x.start, y.start, x.stop, y.stop, area / (area + 1000), label))
        rows.sort(key=lambda row: -row[4])
        table = np.array(rows, dtype=np.float32).reshape(-1, 6)
        return RawDetections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


def canvas(height: int, width: int, *objects: tuple[str, tuple[int, int, int, int]]) -> np.ndarray:
    """A gray image with filled boxes (x1, y1, x2, y2) in the colors of the engine."""
    image = np.full((height, width, 3), 90, np.uint8)
    for name, (x1, y1, x2, y2) in objects:
        image[y1:y2, x1:x2] = COLORS[name]
    return image
