"""Detection with a trained model: ``load("best.pt").predict("image.jpg")``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union, overload

import numpy as np
import torch
from torch import Tensor

from fcos_fast.data import Categories, read_image
from fcos_fast.data.images import to_rgb, upright
from fcos_fast.engine.checkpoint import load_checkpoint, model_from_checkpoint
from fcos_fast.engine.evaluate import detect_batches
from fcos_fast.models import Detector
from fcos_fast.precision import Precision, choose_device
from fcos_fast.visualize import draw_boxes

if TYPE_CHECKING:
    from PIL import Image

ImageLike = Union[str, Path, Tensor, np.ndarray, "Image.Image"]
"""A file, a (3, H, W) RGB tensor (uint8, or float in [0, 1]), a uint8 (H, W, 3) RGB array, or a Pillow image.

The EXIF orientation of files and Pillow images is applied."""


@dataclass(frozen=True)
class Detections:
    """The detections of one image, highest score first.

    Attributes:
        boxes: (N, 4) float32, xyxy in pixels of ``image``.
        scores: (N,) float32 in 0..1.
        labels: (N,) int64 in 0..C-1.
        names: class name of each of the N detections.
        image: (3, H, W), the image with its EXIF orientation applied.
        classes: the C class names.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    names: tuple[str, ...]
    image: Tensor
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def draw(self) -> Image.Image:
        """Draw the detections on the image."""
        return draw_boxes(self.image, self.boxes, self.labels, self.classes, self.scores)

    def to_dict(self) -> list[dict[str, Any]]:
        """The detections as plain values, for JSON."""
        rows = zip(self.names, self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)
        return [
            {"class": name, "label": label, "score": round(score, 4), "box": [round(v, 2) for v in box]}
            for name, label, score, box in rows
        ]


class Predictor:
    """A trained model with its class names.

    Args:
        model: model on its device; ``model.optimize_for_inference()`` makes it fast.
        categories: classes of the model.
    """

    def __init__(self, model: Detector, categories: Categories) -> None:
        self.model = model.eval()
        self.categories = categories

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
            images: see :data:`ImageLike`.
            score_threshold: detections with a lower score are dropped.

        Raises:
            ValueError, TypeError: not an image; the message names the file or the shape.
        """
        if not isinstance(images, (list, tuple)):
            return self._predict([images], score_threshold)[0]
        return self._predict(images, score_threshold) if images else []

    def _predict(self, images: Sequence[Any], score_threshold: float) -> list[Detections]:
        tensors = [as_image(image) for image in images]
        (found,) = detect_batches(self.model, [tensors])
        return [
            self._detections(image, detection, score_threshold)
            for image, detection in zip(tensors, found, strict=True)
        ]

    def _detections(self, image: Tensor, found: dict[str, Tensor], score_threshold: float) -> Detections:
        keep = found["scores"] >= score_threshold
        labels = found["labels"][keep]
        return Detections(
            boxes=found["boxes"][keep],
            scores=found["scores"][keep],
            labels=labels,
            names=tuple(self.categories.names[label] for label in labels.tolist()),
            image=image,
            classes=self.categories.names,
        )


def load(path: str | Path, device: str = "auto", precision: Precision = "auto") -> Predictor:
    """Load a checkpoint for detection, with its model optimized for inference.

    Args:
        path: a ``best.pt`` or ``last.pt`` of ``fcos-fast train``, or a checkpoint of another implementation.
        device: ``auto``, ``cpu``, ``cuda``, ...
        precision: ``auto``: bfloat16 if the device is fast at it.

    Raises:
        FileNotFoundError, ValueError: the file does not exist, or is not a checkpoint.
    """
    target = choose_device(device)
    model, categories = model_from_checkpoint(load_checkpoint(path))
    return Predictor(model.to(target).optimize_for_inference(precision), categories)


def as_image(image: ImageLike) -> Tensor:
    """Convert any :data:`ImageLike` to a (3, H, W) RGB tensor.

    Raises:
        ValueError, TypeError: not an image; the message names the file or the shape.
    """
    if isinstance(image, (str, Path)):
        return read_image(image)
    if isinstance(image, Tensor):
        return image
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"got an array of shape {image.shape} and dtype {image.dtype}; expected uint8 (H, W, 3), RGB"
            )
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)
    if hasattr(image, "convert"):  # a Pillow image
        return to_rgb(upright(image))
    raise TypeError(f"got a {type(image).__name__}; expected a file name, tensor, array or Pillow image")
