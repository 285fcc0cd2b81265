"""Detecting with a trained model: ``load("best.pt").predict("image.jpg")``."""

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

Files and Pillow images are turned upright by their EXIF orientation."""


@dataclass(frozen=True)
class Detections:
    """What was found in one image, the surest first.

    Attributes:
        boxes: (N, 4) float32, xyxy in pixels of ``image``.
        scores: (N,) float32 in 0..1.
        labels: (N,) int64 in 0..C-1.
        names: class name of each of the N detections.
        image: (3, H, W), the image itself, upright.
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
        """The image with the detections drawn on it."""
        return draw_boxes(self.image, self.boxes, self.labels, self.classes, self.scores)

    def to_dict(self) -> list[dict[str, Any]]:
        """Plain values, for JSON."""
        rows = zip(self.names, self.labels.tolist(), self.scores.tolist(), self.boxes.tolist(), strict=True)
        return [
            {"class": name, "label": label, "score": round(score, 4), "box": [round(v, 2) for v in box]}
            for name, label, score, box in rows
        ]


class Predictor:
    """A trained model together with the names of its classes.

    Args:
        model: on the device where it shall run; ``model.optimize_for_inference()`` makes it fast.
        categories: its classes.
    """

    def __init__(self, model: Detector, categories: Categories) -> None:
        self.model = model.eval()
        self.categories = categories

    @overload
    def predict(self, images: ImageLike, score_threshold: float = 0.3) -> Detections: ...
    @overload
    def predict(
        self, images: list[ImageLike] | tuple[ImageLike, ...], score_threshold: float = 0.3
    ) -> list[Detections]: ...
    def predict(
        self, images: ImageLike | Sequence[ImageLike], score_threshold: float = 0.3
    ) -> Detections | list[Detections]:
        """Detect objects in one image, or in each of a list of images.

        Args:
            images: see :data:`ImageLike`.
            score_threshold: weaker detections are left out.

        Raises:
            ValueError, TypeError: what cannot be read as an image; the message names the file or the shape.
        """
        if not isinstance(images, (list, tuple)):
            return self.predict([images], score_threshold)[0]
        tensors = [as_image(image) for image in images]
        if not tensors:
            return []
        (found,) = detect_batches(self.model, [tensors])
        results = []
        for image, detection in zip(tensors, found, strict=True):
            keep = detection["scores"] >= score_threshold
            labels = detection["labels"][keep]
            names = tuple(self.categories.names[label] for label in labels.tolist())
            results.append(
                Detections(
                    boxes=detection["boxes"][keep],
                    scores=detection["scores"][keep],
                    labels=labels,
                    names=names,
                    image=image,
                    classes=self.categories.names,
                )
            )
        return results


def load(path: str | Path, device: str = "auto", precision: Precision = "auto") -> Predictor:
    """Load a checkpoint of ``fcos-fast train`` for detecting, its model optimized for inference.

    Args:
        path: a ``best.pt`` or ``last.pt``, or a checkpoint of another implementation (``fcos-fast convert``).
        device: ``auto``, ``cpu``, ``cuda``, ...
        precision: ``auto`` is bfloat16 where the device is fast at it.

    Raises:
        FileNotFoundError, ValueError: there is no such file, or it is no checkpoint.
    """
    target = choose_device(device)
    model, categories = model_from_checkpoint(load_checkpoint(path))
    return Predictor(model.to(target).optimize_for_inference(precision), categories)


def as_image(image: ImageLike) -> Tensor:
    """Anything that is an image as a (3, H, W) RGB tensor."""
    if isinstance(image, (str, Path)):
        return read_image(image)
    if isinstance(image, Tensor):
        return image
    if hasattr(image, "convert"):  # a Pillow image
        return to_rgb(upright(image))
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"got an array of shape {image.shape} and dtype {image.dtype}; expected uint8 (H, W, 3), RGB"
            )
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)
    raise TypeError(
        f"got a {type(image).__name__}; expected a file name, a tensor, an array or a Pillow image"
    )
