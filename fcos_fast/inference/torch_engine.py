"""A detector in PyTorch as an engine."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np

from fcos_fast.data.categories import Categories
from fcos_fast.data.tensors import to_tensor
from fcos_fast.engine.evaluate import detect_batches
from fcos_fast.inference.engine import RawDetections
from fcos_fast.models import Detector, DetectorConfig
from fcos_fast.models.transform import Transform


class TorchEngine:
    """Runs a detector on its device.

    Args:
        model: model on its device; ``model.optimize_for_inference()`` makes it fast.
        categories: classes of the model.
    """

    def __init__(self, model: Detector, categories: Categories) -> None:
        self.model = model.eval()
        self.categories = categories
        self.iou_threshold = model.config.nms_threshold

    def detect(self, images: Sequence[np.ndarray]) -> list[RawDetections]:
        """As :meth:`Engine.detect <fcos_fast.inference.engine.Engine.detect>`."""
        (found,) = detect_batches(self.model, [[to_tensor(image) for image in images]])
        return [RawDetections(*(image[name].numpy() for name in RawDetections._fields)) for image in found]

    def scaled(self, factor: float) -> TorchEngine:
        """An engine with the same weights, whose model sees images ``factor`` times as large."""
        model = copy.copy(self.model)
        transform = _ScaledTransform(model.config, factor).to(self.model.transform.mean.device).eval()
        model._modules = {**self.model._modules, "transform": transform}  # the weights are shared
        return TorchEngine(model, self.categories)


class _ScaledTransform(Transform):
    """A transform to ``factor`` times the size of the configuration's."""

    def __init__(self, config: DetectorConfig, factor: float) -> None:
        super().__init__(config)
        self.factor = factor

    def _draw_size(self, size: tuple[int, int]) -> tuple[int, int]:
        height, width = (max(1, round(side * self.factor)) for side in super()._draw_size(size))
        return height, width
