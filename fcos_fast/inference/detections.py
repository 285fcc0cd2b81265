"""The detections of an image, and the forms in which they are used elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fcos_fast.data.categories import Categories
from fcos_fast.visualize import draw_boxes

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, eq=False)
class Detections:
    """The detections of one image, highest score first.

    Attributes:
        boxes: (N, 4) float32, xyxy in pixels of ``image``.
        scores: (N,) float32 in 0..1.
        labels: (N,) int64 in 0..C-1.
        image: (H, W, 3) RGB, uint8 or float32 in [0, 1], with its EXIF orientation applied.
        categories: the C classes of the model.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    image: np.ndarray
    categories: Categories

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def names(self) -> tuple[str, ...]:
        """Class name of each of the N detections."""
        return tuple(self.categories.names[label] for label in self.labels.tolist())

    def draw(self) -> Image.Image:
        """Draw the detections on the image."""
        return draw_boxes(self.image, self.boxes, self.labels, self.categories.names, self.scores)

    def to_dict(self) -> list[dict[str, Any]]:
        """The detections as plain values, for JSON."""
        rows = zip(self.names, self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)
        return [
            {"class": name, "label": label, "score": round(score, 4), "box": [round(v, 2) for v in box]}
            for name, label, score, box in rows
        ]
