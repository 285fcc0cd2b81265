"""What target assignment speaks of: ground truth, levels, rules, targets, matches.

These types are shared by :mod:`fcos_fast.ops` and :mod:`fcos_fast.reference`; they hold data and no mathematics.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

BACKGROUND = -1
"""Label of a location that no box claims."""

IGNORED = -2
"""Label of a location that takes part in no loss."""
MAX_LABEL = 2**31 - 1
"""Greatest label: targets are int32. A greater one, unchecked, becomes this one, not another class."""
MAX_SIDE = 2**24
"""Most rows or columns of a level: up to here they are float32 numbers."""

MAX_AREA = 1e8
"""Every published FCOS marks "no box" with 1e8, so a box of this area (pixels²) or more is never assigned."""


def bucket_capacity(count: int) -> int:
    """The capacity to pack ``count`` boxes with, so that shapes repeat: the least of 16, 64, 256, ... not below it."""
    capacity = 16
    while capacity < count:
        capacity *= 4
    return capacity


@dataclass(frozen=True)
class GroundTruth:
    """The boxes of a whole batch, packed.

    Attributes:
        boxes: (M, 4) float32, xyxy in pixels, the images' boxes one after the other.
        labels: (M,) int64, classes 0..C-1.
        starts: (B + 1,) int64; image ``b`` owns the rows ``starts[b]:starts[b + 1]``. Rows from ``starts[B]`` on are
            padding, which nothing reads.
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
        """Pack one (M_b, 4) box tensor and one (M_b,) label tensor per image; images without a box are fine.

        ``capacity`` is the number of rows M, those beyond the boxes being padding; by default as many as there are
        boxes.
        """
        if len(boxes) != len(labels):
            raise ValueError(
                f"GroundTruth.pack: got boxes of {len(boxes)} images but labels of {len(labels)}"
            )
        if len(boxes) == 0:
            raise ValueError("GroundTruth.pack: got no image; a batch has at least one")
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
                "take bucket_capacity(number of boxes)"
            )
        device = boxes[0].device
        if device.type != "cpu":
            starts = starts.pin_memory() if device.type == "cuda" else starts
        return GroundTruth(
            boxes=torch.cat([*boxes, boxes[0].new_zeros((missing, 4))]).to(torch.float32),
            labels=torch.cat([*labels, labels[0].new_full((missing,), BACKGROUND)]).to(torch.int64),
            starts=starts.to(device, non_blocking=True),
        )

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, labels and starts."""
        return self.boxes, self.labels, self.starts

    def map(self, function: Callable[[Tensor], Tensor]) -> GroundTruth:
        """``function`` of each tensor."""
        return GroundTruth(*map(function, self.tensors))

    def to(self, device: torch.device | str, non_blocking: bool = False) -> GroundTruth:
        """Copy to ``device``."""
        return self.map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> GroundTruth:
        """Copy to pinned memory, from which ``to(device, non_blocking=True)`` does not wait."""
        return self.map(Tensor.pin_memory)


@dataclass(frozen=True)
class Level:
    """One level of the feature pyramid, as assignment sees it.

    Location (i, j) of the level stands at pixel ``(offset_x + j * step_x, offset_y + i * step_y)``; locations are
    counted row by row, level after level.

    Attributes:
        height, width: size of the feature map in cells, at most ``MAX_SIDE``.
        stride: the nominal stride in pixels, unit of the centre-sampling radius (and of normalised regression).
        step: (y, x) pixels between neighbouring locations.
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
        """Pixel coordinates of the level's locations: (height * width, 2) float32, (x, y)."""
        y = self.offset[0] + self.step[0] * torch.arange(self.height, dtype=torch.float32, device=device)
        x = self.offset[1] + self.step[1] * torch.arange(self.width, dtype=torch.float32, device=device)
        return torch.cartesian_prod(y, x).flip(1) if self.height * self.width else y.new_zeros((0, 2))


Location = Literal["half_stride", "grid"]
RangeTest = Literal["closed", "open", "left_open"]
Sampling = Literal["box", "center_clipped", "center", "circle"]
TieBreak = Literal["area", "quantized_area"]

RULE_CHOICES: dict[str, tuple[str, ...]] = {
    "location": get_args(Location),
    "range_test": get_args(RangeTest),
    "sampling": get_args(Sampling),
    "tie_break": get_args(TieBreak),
}
"""The choices of an :class:`AssignmentRule`, in the order of the enumerations of csrc/math/assign_targets.h."""


@dataclass(frozen=True)
class AssignmentRule:
    """How locations find their box: the choices in which the published FCOS differ.

    Attributes:
        location: where cell (i, j) stands. ``half_stride``: ``i * stride + stride // 2``. ``grid``:
            ``i * (image_size // grid_size)`` with no offset, as torchvision has it.
        range_test: max(l, t, r, b) against the level's ``(lower, upper)``. ``closed``: >= and <=. ``open``: > and <.
            ``left_open``: > and <=.
        sampling: where inside its box a location may stand. ``box``: strictly inside. ``center_clipped``: strictly
            inside the square of half side ``radius * stride`` around the box centre, clipped to the box (official).
            ``center``: per axis closer than ``radius * stride`` to the centre, and inside the box (detectron2).
            ``circle``: Euclidean distance below ``radius * stride``, and inside the box (SimpleAICV).
        radius: of the sampling region, in strides.
        tie_break: which of several boxes. ``area``: the smallest, the first of equals. ``quantized_area``: largest
            float32(1e8 - area), first of equals: areas that differ by less than about 8 pixels² are equal
            (detectron2, torchvision).
        sizes_of_interest: the inner bounds between levels in pixels, one fewer than there are levels.
        lowest: lower bound of the first level, which no distance reaches: -1 in official code and its descendants, 0 in
            detectron2 and torchvision.

    Raises:
        ValueError: a choice that is none of these, a radius that is not positive, sizes that do not rise.
        TypeError: sizes that are no tuple of numbers.
    """

    location: Location = "half_stride"
    range_test: RangeTest = "closed"
    sampling: Sampling = "center_clipped"
    radius: float = 1.5
    tie_break: TieBreak = "area"
    sizes_of_interest: tuple[float, ...] = (64.0, 128.0, 256.0, 512.0)
    lowest: float = -1.0

    def __post_init__(self) -> None:
        for name, choices in RULE_CHOICES.items():
            if getattr(self, name) not in choices:
                known = ", ".join(choices)
                raise ValueError(f"AssignmentRule: {name}={getattr(self, name)!r}; expected one of {known}")
        sizes = self.sizes_of_interest
        if not isinstance(sizes, tuple) or not all(isinstance(size, (int, float)) for size in sizes):
            raise TypeError(f"AssignmentRule: sizes_of_interest={sizes!r}; expected a tuple of pixels")
        if not self.radius > 0:
            raise ValueError(f"AssignmentRule: radius={self.radius}; expected a positive number of strides")
        bounds = (self.lowest, *sizes)
        if any(low >= high for low, high in pairwise(bounds)):
            raise ValueError(
                f"AssignmentRule: lowest and sizes_of_interest are {bounds}; expected them to rise"
            )

    def levels(
        self,
        feature_sizes: Sequence[tuple[int, int]],
        image_size: tuple[int, int],
        strides: Sequence[int] = (8, 16, 32, 64, 128),
    ) -> list[Level]:
        """Lay the rule over feature maps of ``(height, width)`` cells, for a padded image of ``(height, width)``."""
        if not len(feature_sizes) == len(strides) == len(self.sizes_of_interest) + 1:
            raise ValueError(
                f"AssignmentRule.levels: got {len(feature_sizes)} feature sizes, {len(strides)} strides and "
                f"{len(self.sizes_of_interest)} sizes of interest; expected n, n and n - 1"
            )
        bounds = (self.lowest, *self.sizes_of_interest, float("inf"))
        levels = []
        for i, ((height, width), stride) in enumerate(zip(feature_sizes, strides, strict=True)):
            if self.location == "grid":
                step = (float(image_size[0] // height), float(image_size[1] // width))
                offset = (0.0, 0.0)
            else:
                step = (float(stride), float(stride))
                offset = (float(stride // 2), float(stride // 2))
            levels.append(Level(height, width, float(stride), step, offset, (bounds[i], bounds[i + 1])))
        return levels


RULES: dict[str, AssignmentRule] = {
    "official": AssignmentRule(sampling="box"),
    "official-improved": AssignmentRule(sampling="center_clipped"),
    "adelaidet": AssignmentRule(sampling="center_clipped"),
    "mmdetection": AssignmentRule(sampling="box"),
    "detectron2": AssignmentRule(
        range_test="open", sampling="center", tie_break="quantized_area", lowest=0.0
    ),
    "torchvision": AssignmentRule(
        location="grid", range_test="open", sampling="center", tie_break="quantized_area", lowest=0.0
    ),
    "notebook": AssignmentRule(range_test="left_open", sampling="center"),
    "simpleaicv": AssignmentRule(range_test="open", sampling="circle"),
}
"""The rules of the published implementations, by preset name.

Areas are those of continuous boxes, (x2 - x1) * (y2 - y1). Official code adds 1 to both sides of its boxes, which end
at the last pixel inside.
"""


@dataclass(frozen=True)
class AnchorMatches:
    """What the matching of anchors decides, for B images and A anchors.

    Attributes:
        labels: (B, A) int32; class 0..C-1, ``BACKGROUND`` (-1) or ``IGNORED`` (-2).
        matched: (B, A) int32; row of ``GroundTruth.boxes``, -1 for background, -2 where the label is ignored.
        num_positive: float32 scalar on the device; number of anchors with a box.
    """

    labels: Tensor
    matched: Tensor
    num_positive: Tensor


@dataclass(frozen=True)
class Targets:
    """What assignment decides, for B images and all P locations of all levels.

    Attributes:
        labels: (B, P) int32; class 0..C-1, ``BACKGROUND`` (-1) or ``IGNORED`` (-2).
        matched: (B, P) int32; row of ``GroundTruth.boxes``, -1 where there is none.
        ltrb: (B, P, 4) float32; distances in pixels to the matched box's sides, 0 where there is none.
        centerness: (B, P) float32; of ``ltrb``, 0 where there is none.
        totals: (2,) float32 on the device; number of positive locations, sum of their centerness. One tensor, so
            that several processes all-reduce it in one call.
    """

    labels: Tensor
    matched: Tensor
    ltrb: Tensor
    centerness: Tensor
    totals: Tensor

    @property
    def num_positive(self) -> Tensor:
        """Number of positive locations: float32 scalar on the device."""
        return self.totals[0]

    @property
    def centerness_sum(self) -> Tensor:
        """Sum of the positive locations' centerness: float32 scalar on the device."""
        return self.totals[1]
