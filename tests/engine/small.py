"""Small detectors and batches for them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fcos_fast.assignment import GroundTruth
from fcos_fast.models import BatchPacker, ImageBatch, RetinaNetConfig
from tests.engine.conftest import TINY_MODEL

MODEL = replace(TINY_MODEL, num_classes=3)
RETINANET = RetinaNetConfig(
    backbone="resnet18",
    num_classes=3,
    fpn_channels=32,
    head_channels=64,
    head_convs=1,
    min_size=None,
    max_size=None,
)
SIZES = ((64, 96), (60, 80))


def samples(seed: int, sizes: tuple = SIZES) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Lists of images and targets as a dataset returns them."""
    generator = torch.Generator().manual_seed(seed)
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]
    targets = [
        {"boxes": torch.tensor([[4.0, 5 + b, 40, 50], [20, 10, 70, 40]]), "labels": torch.tensor([b % 3, 1])}
        for b in range(len(sizes))
    ]
    return images, targets


def packed(seed: int, sizes: tuple = SIZES) -> tuple[ImageBatch, GroundTruth]:
    """The batch of these samples."""
    return BatchPacker(MODEL).collate(list(zip(*samples(seed, sizes), strict=True)))


def with_nan(images: ImageBatch, model: nn.Module) -> ImageBatch:
    """The normalized images with a NaN pixel, which makes every loss NaN."""
    tensor = model.transform.normalize(images).tensor.clone()
    tensor[0, 0, 3, 3] = torch.nan
    return ImageBatch(tensor, images.sizes, images.extents)
