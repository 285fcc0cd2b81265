"""Boxes and scores of the sizes and kinds that detectors meet; made on the CPU, the same for every device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

IMAGE = (800, 1344)
"""(height, width) of COCO training images after resizing and padding."""

STRIDES = (8, 16, 32, 64, 128)
"""Of P3 to P7."""


@dataclass(frozen=True)
class Batch:
    """The work of a head: so many images of a size, with so many classes."""

    images: int
    size: tuple[int, int]
    classes: int

    @property
    def feature_sizes(self) -> list[tuple[int, int]]:
        """(height, width) of P3 to P7."""
        return [tuple(-(-side // stride) for side in self.size) for stride in STRIDES]

    @property
    def locations(self) -> int:
        """Of all levels and images."""
        return self.images * sum(height * width for height, width in self.feature_sizes)

    def __str__(self) -> str:
        height, width = self.size
        return f"{self.images} images {height}x{width}, {self.classes} classes"


BATCHES = {"cpu": Batch(2, (800, 1088), 91), "cuda": Batch(16, IMAGE, 80)}
"""Where it is timed to what: on a GPU so much that no level-2 cache holds it."""

FEATURE_SIZES = BATCHES["cuda"].feature_sizes
"""(height, width) of P3 to P7 for an image of size ``IMAGE``."""


def random_boxes(count: int, smallest: float, largest: float) -> Tensor:
    """(count, 4) xyxy, anywhere in the image; sides spread evenly in their logarithm, in pixels."""
    spread = torch.log(torch.tensor(largest / smallest))
    size = smallest * torch.exp(torch.rand(count, 2) * spread)
    height, width = IMAGE
    center = torch.rand(count, 2) * torch.tensor([width, height])
    return torch.cat((center - size / 2, center + size / 2), dim=1)


def clustered_boxes(count: int, per_object: int = 50) -> Tensor:
    """(count, 4) xyxy: about ``per_object`` candidates around each object, as a detection head gives them.

    An IoU threshold of 0.6 keeps one in twenty.
    """
    objects = random_boxes(max(1, count // per_object), 16, 400)
    return jittered(objects[torch.randint(len(objects), (count,))], 0.15)


def jittered(boxes: Tensor, amount: float) -> Tensor:
    """The boxes with sides moved by up to ``amount`` of their width and height."""
    size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    return boxes + (torch.rand_like(boxes) * 2 - 1) * amount * size


def distinct_scores(count: int) -> Tensor:
    """(count,) in [0, 1), no two alike: the order of equal scores is not the same in all libraries."""
    return torch.randperm(count) / count
