"""Types of target assignment: ground truth, levels, rules, targets, matches.

:mod:`fcos_fast.ops` and :mod:`fcos_fast.reference` share them; they contain data and no mathematics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fcos_fast.assignment_rule import RULES, AssignmentRule

__all__ = [
    "BACKGROUND",
    "IGNORED",
    "MAX_AREA",
    "MAX_LABEL",
    "MAX_SIDE",
    "RULES",
    "AnchorMatches",
    "AssignmentRule",
    "GroundTruth",
    "Level",
    "Targets",
    "bucket_capacity",
]

BACKGROUND = -1
"""Label of a location or anchor without a box."""

IGNORED = -2
"""Label of a location or anchor that is excluded from the losses."""

MAX_LABEL = 2**31 - 1
"""Maximum label, because targets are int32. Unchecked larger labels are clamped to it."""

MAX_SIDE = 2**24
"""Maximum number of rows or columns of a level: larger indices are not exact in float32."""

MAX_AREA = 1e8
"""Boxes of this area (pixels²) or more are never assigned: every published FCOS uses 1e8 for "no box"."""


def bucket_capacity(count: int) -> int:
    """``count`` rounded up to 16, 64, 256, ...: a capacity for packed boxes, so that few shapes occur."""
    capacity = 16
    while capacity < count:
        capacity *= 4
    return capacity


@dataclass(frozen=True)
class GroundTruth:
    """The boxes of a whole batch, packed.

    Attributes:
        boxes: (M, 4) float32, xyxy in pixels, concatenated over the images.
        labels: (M,) int64, classes 0..C-1.
        starts: (B + 1,) int64; the rows ``starts[b]:starts[b + 1]`` belong to image ``b``. Rows from ``starts[B]`` on
            are unused padding.
    """

    boxes: Tensor
    labels: Tensor
    starts: Tensor

    @property
    def batch_size(self) -> int:
        """Number of images B."""
        return self.starts.numel() - 1

    @staticmethod
    def pack(boxes: Sequence[Tensor], labels: Sequence[Tensor], capacity: int | None = None) -> GroundTruth:
        """Pack one (M_b, 4) box tensor and one (M_b,) label tensor per image; M_b may be 0.

        Args:
            boxes: boxes of each image, xyxy in pixels.
            labels: labels of each image.
            capacity: number of rows M including padding; by default the number of boxes.

        Raises:
            ValueError: wrong shapes, no image, or more boxes than ``capacity``.
        """
        if len(boxes) != len(labels):
            raise ValueError(
                f"GroundTruth.pack: got boxes of {len(boxes)} images but labels of {len(labels)}"
            )
        if len(boxes) == 0:
            raise ValueError("GroundTruth.pack: got no image; expected at least one")
        for b, (box, label) in enumerate(zip(boxes, labels, strict=True)):
            if box.ndim != 2 or box.shape[1] != 4 or label.shape != box.shape[:1]:
                raise ValueError(
                    f"GroundTruth.pack: image {b} has boxes of shape {tuple(box.shape)} and labels of shape "
                    f"{tuple(label.shape)}; expected (M, 4) and (M,)"
                )
        counts = [len(box) for box in boxes]
        starts = torch.tensor([0, *counts]).cumsum(0)
        missing = 0 if capacity is None else capacity - sum(counts)
        if missing < 0:
            raise ValueError(
                f"GroundTruth.pack: capacity is {capacity} but there are {sum(counts)} boxes; "
                "use bucket_capacity(number of boxes)"
            )
        device = boxes[0].device
        if device.type != "cpu":
            starts = starts.pin_memory() if device.type == "cuda" else starts
        return GroundTruth(
            boxes=torch.cat([*boxes, boxes[0].new_zeros((missing, 4))]).to(torch.float32),
            labels=torch.cat([*labels, labels[0].new_full((missing,), BACKGROUND)]).to(torch.int64),
            starts=starts.to(device, non_blocking=True),
        )

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, labels and starts."""
        return self.boxes, self.labels, self.starts

    def map(self, function: Callable[[Tensor], Tensor]) -> GroundTruth:
        """``function`` of each tensor."""
        return GroundTruth(*map(function, self.tensors()))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> GroundTruth:
        """Copy to ``device``."""
        return self.map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> GroundTruth:
        """Copy to pinned memory, from which ``to(device, non_blocking=True)`` is asynchronous."""
        return self.map(Tensor.pin_memory)


@dataclass(frozen=True)
class Level:
    """The locations of one pyramid level.

    Location (i, j) is at pixel ``(offset_x + j * step_x, offset_y + i * step_y)``. Locations are ordered by level, row,
    column.

    Attributes:
        height, width: size of the feature map in cells, at most ``MAX_SIDE``.
        stride: nominal stride in pixels, the unit of the center-sampling radius (and of normalized regression).
        step: (y, x) pixels between neighboring locations.
        offset: (y, x) pixels of the first location.
        size_range: (lower, upper) bounds in pixels of max(l, t, r, b) for boxes of this level.
    """

    height: int
    width: int
    stride: float
    step: tuple[float, float]
    offset: tuple[float, float]
    size_range: tuple[float, float]

    def points(self, device: torch.device | str | None = None) -> Tensor:
        """The locations (x, y) in pixels: (height * width, 2) float32."""
        y = self.offset[0] + self.step[0] * torch.arange(self.height, dtype=torch.float32, device=device)
        x = self.offset[1] + self.step[1] * torch.arange(self.width, dtype=torch.float32, device=device)
        # cartesian_prod would fix a side of 1 in torch.export
        return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1)


@dataclass(frozen=True)
class AnchorMatches:
    """The result of anchor matching for B images and A anchors.

    Attributes:
        labels: (B, A) int32; class 0..C-1, ``BACKGROUND`` (-1) or ``IGNORED`` (-2).
        matched: (B, A) int32; row of ``GroundTruth.boxes``, -1 for background, -2 for ignored anchors.
        num_positive: float32 scalar on the device; number of matched anchors.
    """

    labels: Tensor
    matched: Tensor
    num_positive: Tensor


@dataclass(frozen=True)
class Targets:
    """The result of target assignment for B images and the P locations of all levels.

    Attributes:
        labels: (B, P) int32; class 0..C-1, ``BACKGROUND`` (-1) or ``IGNORED`` (-2).
        matched: (B, P) int32; row of ``GroundTruth.boxes``, -1 without a box.
        ltrb: (B, P, 4) float32; distances in pixels to the sides of the matched box, 0 without one.
        centerness: (B, P) float32; centerness of ``ltrb``, 0 without a box.
        totals: (2,) float32 on the device; number of positive locations and sum of their centerness, in one tensor
            for a single all-reduce.
    """

    labels: Tensor
    matched: Tensor
    ltrb: Tensor
    centerness: Tensor
    totals: Tensor

    def part(self, images: slice) -> Targets:
        """The targets of some of the images, with the totals of all."""
        tensors = (self.labels, self.matched, self.ltrb, self.centerness)
        labels, matched, ltrb, centerness = (tensor[images] for tensor in tensors)
        return Targets(labels, matched, ltrb, centerness, self.totals)

    @property
    def num_positive(self) -> Tensor:
        """Number of positive locations: float32 scalar on the device."""
        return self.totals[0]

    @property
    def centerness_sum(self) -> Tensor:
        """Sum of the positive locations' centerness: float32 scalar on the device."""
        return self.totals[1]
