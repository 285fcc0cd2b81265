"""Large images by tiles: small objects are found at the size at which the model learned them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from fcos_fast.inference.engine import Engine, RawDetections
from fcos_fast.inference.merging import merged


class TiledEngine:
    """Runs another engine on the whole image and on overlapping tiles of it, and merges the detections.

    A box that ends at an inner border of its tile belongs to an object that the border cuts, and is dropped. An object
    that is smaller than three quarters of the overlap is whole in another tile, and a larger one is found in the whole
    image. One class-wise NMS then keeps one box of each object. An image that fits into a tile is not divided.

    Args:
        engine: runs the model.
        tile: side of a tile in pixels.
        overlap: the least overlap of neighboring tiles, as a fraction of ``tile``.
        batch_size: tiles that the model receives at once.

    Raises:
        ValueError: ``tile`` or ``overlap`` is out of range.
    """

    def __init__(self, engine: Engine, tile: int, overlap: float = 0.2, batch_size: int = 1) -> None:
        if tile < 32:
            raise ValueError(f"tile={tile}; expected the side of a tile in pixels, at least 32")
        if not 0 <= overlap <= 0.9:
            raise ValueError(f"overlap={overlap}; expected a fraction of the tile from 0 to 0.9")
        self.engine = engine
        self.categories, self.iou_threshold = engine.categories, engine.iou_threshold
        self.tile, self.overlap, self.batch_size = tile, overlap, batch_size

    def detect(self, images: Sequence[np.ndarray]) -> list[RawDetections]:
        """As :meth:`Engine.detect <fcos_fast.inference.engine.Engine.detect>`."""
        return [self._detect(image) for image in images]

    def _detect(self, image: np.ndarray) -> RawDetections:
        height, width = image.shape[:2]
        views = self.engine.detect([image])  # by itself: batches are of one size
        corners = [*product(self._starts(height), self._starts(width))]
        if len(corners) == 1:
            return views[0]
        for first in range(0, len(corners), self.batch_size):
            batch = corners[first : first + self.batch_size]
            found = self.engine.detect([image[y : y + self.tile, x : x + self.tile] for y, x in batch])
            for (y, x), detections in zip(batch, found, strict=True):
                shifted = detections._replace(boxes=detections.boxes + np.array((x, y, x, y), np.float32))
                views.append(self._whole(shifted, (x, y), (width, height)))
        return merged(views, self.iou_threshold)

    def _starts(self, length: int) -> list[int]:
        """Where the tiles begin along a side of the image; they are evenly spread."""
        if length <= self.tile:
            return [0]
        step = max(1, int(self.tile * (1 - self.overlap)))
        count = -((self.tile - length) // step) + 1  # rounded up
        return np.linspace(0, length - self.tile, count).round().astype(int).tolist()

    def _whole(self, found: RawDetections, corner: tuple[int, int], size: tuple[int, int]) -> RawDetections:
        """The detections of a tile without those that its inner borders cut.

        Args:
            found: detections, with boxes in pixels of the image.
            corner: (x, y) of the tile.
            size: (width, height) of the image.
        """
        margin = max(1.0, self.tile * self.overlap / 8)  # boxes of cut objects end near the border, not on it
        keep = np.ones(len(found.scores), dtype=bool)
        for axis in (0, 1):
            start, end = corner[axis], corner[axis] + self.tile
            if start > 0:
                keep &= found.boxes[:, axis] > start + margin
            if end < size[axis]:
                keep &= found.boxes[:, axis + 2] < end - margin
        return RawDetections(*(values[keep] for values in found))
