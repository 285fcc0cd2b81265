"""Boxes and scores typical for detectors, generated on the CPU so that they are the same for every device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

IMAGE = (800, 1344)
"""(height, width) of COCO training images after resizing and padding."""

STRIDES = (8, 16, 32, 64, 128)
"""Strides of P3 to P7."""


@dataclass(frozen=True)
class Batch:
    """The input of a head: number of images, their size and the number of classes."""

    images: int
    size: tuple[int, int]
    classes: int

    @property
    def feature_sizes(self) -> list[tuple[int, int]]:
        """(height, width) of P3 to P7."""
        return [tuple(-(-side // stride) for side in self.size) for stride in STRIDES]

    @property
    def locations(self) -> int:
        """Number of locations on all levels and images."""
        return self.images * sum(height * width for height, width in self.feature_sizes)

    def __str__(self) -> str:
        height, width = self.size
        return f"{self.images} images {height}x{width}, {self.classes} classes"


BATCHES = {"cpu": Batch(2, (800, 1088), 91), "cuda": Batch(16, IMAGE, 80)}
"""Device -> batch. On a GPU, it is larger than the L2 cache."""

FEATURE_SIZES = BATCHES["cuda"].feature_sizes
"""(height, width) of P3 to P7 for an image of size ``IMAGE``."""


def random_boxes(count: int, smallest: float, largest: float) -> Tensor:
    """(count, 4) xyxy in pixels, anywhere in the image, with log-uniform sides."""
    spread = torch.log(torch.tensor(largest / smallest))
    size = smallest * torch.exp(torch.rand(count, 2) * spread)
    height, width = IMAGE
    center = torch.rand(count, 2) * torch.tensor([width, height])
    return torch.cat((center - size / 2, center + size / 2), dim=1)


def clustered_boxes(count: int, per_object: int = 50) -> Tensor:
    """(count, 4) xyxy: about ``per_object`` candidates around each object, like those of a detection head.

    An IoU threshold of 0.6 keeps one in twenty.
    """
    objects = random_boxes(max(1, count // per_object), 16, 400)
    return jittered(objects[torch.randint(len(objects), (count,))], 0.15)


def jittered(boxes: Tensor, amount: float) -> Tensor:
    """Move each side of the boxes by up to ``amount`` of their width or height."""
    size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    return boxes + (torch.rand_like(boxes) * 2 - 1) * amount * size


def distinct_scores(count: int) -> Tensor:
    """(count,) distinct scores in [0, 1), since libraries order equal scores differently."""
    return torch.randperm(count) / count
