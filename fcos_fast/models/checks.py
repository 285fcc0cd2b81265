"""Checks of the inputs of a model."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from fcos_fast.assignment import GroundTruth
from fcos_fast.boxes import has_area
from fcos_fast.models.transform import ImageBatch


def check_images(images: object, device: torch.device) -> None:
    """Raise unless ``images`` is a sequence of RGB images (3, H, W), float or uint8, on ``device``."""
    if isinstance(images, Tensor) or not isinstance(images, Sequence):
        raise TypeError(f"images: got {_kind(images)}; expected a list of tensors (3, H, W), one per image")
    if len(images) == 0:
        raise ValueError("images: got an empty list; expected at least one image")
    for i, image in enumerate(images):
        name = f"images[{i}]"
        if not isinstance(image, Tensor):
            raise TypeError(f"{name}: got {_kind(image)}; expected a tensor (3, H, W)")
        if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
            raise ValueError(f"{name}: got shape {tuple(image.shape)}; expected (3, H, W), RGB, not empty")
        if image.dtype != torch.uint8 and not image.is_floating_point():
            raise TypeError(f"{name}: got {image.dtype}; expected uint8, or floating point in [0, 1]")
        _check_device(name, image, device)
        if image.is_floating_point() and values_are_checked(image) and not image.amax() <= 2:
            # 2 and not 1: resampling and color jitter overshoot a little.
            raise ValueError(
                f"{name}: got values up to {float(image.amax()):g}; floating-point images are in [0, 1]: "
                "divide by 255, or pass uint8"
            )


def check_targets(
    targets: object, num_images: int, num_classes: int, device: torch.device
) -> Sequence[dict[str, Tensor]]:
    """``targets`` if it is one dict per image of ``boxes`` (N, 4) xyxy and ``labels`` (N,) in 0..C-1; else raise.

    Values on a GPU are checked only with ``FCOS_FAST_CHECK=1``, because reading them waits for the device.
    """
    if targets is None:
        raise ValueError("targets: got None; training needs one dict of boxes and labels per image")
    if not isinstance(targets, Sequence) or len(targets) != num_images:
        count = len(targets) if isinstance(targets, Sequence) else _kind(targets)
        raise ValueError(
            f"targets: got {count} for {num_images} images; expected a list of one dict per image"
        )
    for i, target in enumerate(targets):
        name = f"targets[{i}]"
        for key in ("boxes", "labels"):
            if not isinstance(target, dict) or not isinstance(target.get(key), Tensor):
                raise TypeError(
                    f"{name}: expected a dict with the tensors 'boxes' and 'labels'; {key!r} is missing"
                )
            _check_device(f"{name}[{key!r}]", target[key], device)
        _check_target(name, target["boxes"], target["labels"], num_classes)
    return targets


def check_packed(images: ImageBatch, targets: object, training: bool, device: torch.device) -> GroundTruth:
    """``targets`` if it is the ground truth of a training batch and both are on ``device``; else raise.

    Values were checked when they were packed.
    """
    if not training:
        raise ValueError(
            "images: got an ImageBatch in evaluation mode; pass a list of tensors (3, H, W), or call .train()"
        )
    if not isinstance(targets, GroundTruth):
        raise TypeError(f"targets: got {_kind(targets)} with an ImageBatch; expected its GroundTruth")
    if targets.batch_size != len(images.tensor):
        raise ValueError(
            f"targets: got the targets of {targets.batch_size} images for {len(images.tensor)} images"
        )
    for name, tensor in zip(
        ("images", "boxes", "labels", "starts"), (images.tensor, *targets.tensors()), strict=True
    ):
        _check_device(name, tensor, device)
    return targets


def _check_target(name: str, boxes: Tensor, labels: Tensor, num_classes: int) -> None:
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise ValueError(f"{name}['boxes']: got shape {tuple(boxes.shape)}; expected (N, 4), also if N is 0")
    if labels.shape != boxes.shape[:1]:
        raise ValueError(
            f"{name}['labels']: got shape {tuple(labels.shape)} for {len(boxes)} boxes; "
            f"expected ({len(boxes)},)"
        )
    if not boxes.is_floating_point():
        raise TypeError(f"{name}['boxes']: got {boxes.dtype}; expected float32")
    if labels.dtype != torch.int64:
        raise TypeError(f"{name}['labels']: got {labels.dtype}; expected int64")
    if not values_are_checked(boxes):
        return
    wrong = ~(has_area(boxes) & boxes.isfinite().all(dim=1))
    if wrong.any():
        n = int(wrong.nonzero()[0])
        raise ValueError(
            f"{name}['boxes'][{n}]: got {boxes[n].tolist()}; expected finite x1 < x2 and y1 < y2"
        )
    wrong = (labels < 0) | (labels >= num_classes)
    if wrong.any():
        n = int(wrong.nonzero()[0])
        raise ValueError(f"{name}['labels'][{n}]: got {int(labels[n])}; expected 0 to {num_classes - 1}")


def _check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(
            f"{name}: is on {tensor.device}, but the model is on {device}; move one of them with .to()"
        )


def values_are_checked(tensor: Tensor) -> bool:
    """Whether to read the values: reading them on a GPU waits for the device, so there only on request.

    Never while ``torch.export`` traces: tensors have no values then.
    """
    if torch.compiler.is_exporting():
        return False
    return tensor.device.type == "cpu" or os.environ.get("FCOS_FAST_CHECK") == "1"


def _kind(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
