"""From images of any kind to detections."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast, overload

import numpy as np

from fcos_fast.data.categories import Categories
from fcos_fast.inference.detections import Detections
from fcos_fast.inference.engine import Engine, RawDetections
from fcos_fast.inference.images import ImageLike, as_array


class Predictor:
    """A trained model: finds objects in images.

    Args:
        engine: runs the model.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def categories(self) -> Categories:
        """Classes of the model."""
        return self.engine.categories

    @overload
    def predict(  # type: ignore[overload-overlap]  # a str is a sequence of str, but means a file here
        self, images: ImageLike, score_threshold: float = 0.3
    ) -> Detections: ...

    @overload
    def predict(self, images: Sequence[ImageLike], score_threshold: float = 0.3) -> list[Detections]: ...

    def predict(
        self, images: ImageLike | Sequence[ImageLike], score_threshold: float = 0.3
    ) -> Detections | list[Detections]:
        """Detect objects in one image, or in each image of a list.

        Args:
            images: see :data:`~fcos_fast.inference.images.ImageLike`.
            score_threshold: detections with a lower score are dropped.

        Raises:
            ValueError, TypeError: not an image; the message names the file or the shape.
        """
        several = isinstance(images, (list, tuple))
        arrays = [as_array(image) for image in cast("list[ImageLike]", images if several else [images])]
        found = self._predict(arrays, score_threshold) if arrays else []
        return found if several else found[0]

    def _predict(self, images: Sequence[np.ndarray], score_threshold: float) -> list[Detections]:
        found = self.engine.detect(images)
        return [self._detections(*pair, score_threshold) for pair in zip(images, found, strict=True)]

    def _detections(self, image: np.ndarray, found: RawDetections, score_threshold: float) -> Detections:
        keep = found.scores >= score_threshold
        boxes, scores, labels = (values[keep] for values in found)
        return Detections(boxes, scores, labels, image, self.categories)
