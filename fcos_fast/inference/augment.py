"""Test-time augmentation: several views of an image, merged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fcos_fast.inference.engine import Engine, RawDetections
from fcos_fast.inference.merging import merged


class AugmentedEngine:
    """Runs another engine on each image and its mirror image, at one or several scales, and merges the detections.

    Class-wise NMS keeps one box of each object, with its highest score and at the mean of its boxes, weighted with the
    scores.

    Args:
        engine: runs the model.
        scales: factors of the size at which the model sees an image.

    Raises:
        ValueError: a scale is out of range, or is not 1 and the engine runs the model at one size only.
    """

    def __init__(self, engine: Engine, scales: Sequence[float] = (1.0,)) -> None:
        if not scales or not all(0.1 <= scale <= 10 for scale in scales):
            raise ValueError(
                f"augment={list(scales)}; expected scales from 0.1 to 10, such as [0.8, 1, 1.25]"
            )
        self.categories, self.iou_threshold = engine.categories, engine.iou_threshold
        self.engines = [engine if scale == 1 else _scaled(engine, scale) for scale in scales]

    def detect(self, images: Sequence[np.ndarray]) -> list[RawDetections]:
        """As :meth:`Engine.detect <fcos_fast.inference.engine.Engine.detect>`."""
        mirrored = [image[:, ::-1] for image in images]
        views: list[list[RawDetections]] = [[] for _ in images]
        for engine in self.engines:
            found = zip(views, images, engine.detect(images), engine.detect(mirrored), strict=True)
            for own, image, straight, back in found:
                own += [straight, _mirrored(back, image.shape[1])]
        return [merged(own, self.iou_threshold, average=True) for own in views]


def _scaled(engine: Any, scale: float) -> Engine:
    if not hasattr(engine, "scaled"):
        raise ValueError(
            f"augment: {type(engine).__name__} runs the model at one size, not at scale {scale:g}; use augment=True, "
            "which only mirrors, or a checkpoint"
        )
    scaled: Engine = engine.scaled(scale)
    return scaled


def _mirrored(found: RawDetections, width: int) -> RawDetections:
    """The detections of a mirrored image in pixels of the image itself."""
    x1, y1, x2, y2 = found.boxes.T
    return found._replace(boxes=np.stack((width - x2, y1, width - x1, y2), axis=1))
