"""A detector in PyTorch as an engine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fcos_fast.data.categories import Categories
from fcos_fast.data.tensors import to_tensor
from fcos_fast.engine.evaluate import detect_batches
from fcos_fast.inference.engine import RawDetections
from fcos_fast.models import Detector


class TorchEngine:
    """Runs a detector on its device.

    Args:
        model: model on its device; ``model.optimize_for_inference()`` makes it fast.
        categories: classes of the model.
    """

    def __init__(self, model: Detector, categories: Categories) -> None:
        self.model = model.eval()
        self.categories = categories

    def detect(self, images: Sequence[np.ndarray]) -> list[RawDetections]:
        """As :meth:`Engine.detect <fcos_fast.inference.engine.Engine.detect>`."""
        (found,) = detect_batches(self.model, [[to_tensor(image) for image in images]])
        return [RawDetections(*(image[name].numpy() for name in RawDetections._fields)) for image in found]
