"""Assignment rules of the published FCOS implementations.

Part of the configuration, so it needs no torch; :mod:`fcos_fast.assignment` has the tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import fcos_fast
from fcos_fast.fields import check_fields, checked

Location = Literal["half_stride", "grid"]
RangeTest = Literal["closed", "open", "left_open"]
Sampling = Literal["box", "center_clipped", "center", "circle"]
TieBreak = Literal["area", "quantized_area"]
# csrc/math/assign_targets.h has the same names


@dataclass(frozen=True)
class AssignmentRule:
    """How locations are assigned to boxes: the choices in which the published FCOS differ.

    Attributes:
        location: position of cell (i, j). ``half_stride``: ``i * stride + stride // 2``. ``grid``:
            ``i * (image_size // grid_size)`` without an offset, as in torchvision.
        range_test: how the largest of the distances l, t, r, b is compared with the level's bounds (lower, upper).
            ``closed``: >= and <=. ``open``: > and <. ``left_open``: > and <=.
        sampling: region of a box whose locations are positive. ``box``: strictly inside. ``center_clipped``: strictly
            inside the square of half side ``radius * stride`` around the box center, clipped to the box (official).
            ``center``: per axis closer than ``radius * stride`` to the center, and inside the box (detectron2).
            ``circle``: Euclidean distance below ``radius * stride``, and inside the box (SimpleAICV).
        radius: size of the sampling region, in strides.
        tie_break: which of several boxes gets a location. ``area``: the smallest; of equals, the first.
            ``quantized_area``: the largest float32(1e8 - area); of equals, the first. Areas that differ by less than
            about 8 pixels² are then equal (detectron2, torchvision).
        sizes_of_interest: bounds between the levels' size ranges in pixels, one fewer than levels.
        lowest: lower bound of the first level in pixels: -1 in official code and its descendants, 0 in detectron2 and
            torchvision.

    Raises:
        ValueError: unknown choice, radius that is not positive, bounds that do not increase.
        TypeError: value of the wrong type.
    """

    location: Location = "half_stride"
    range_test: RangeTest = "closed"
    sampling: Sampling = "center_clipped"
    radius: float = checked(1.5, lambda radius: radius > 0, "a positive number of strides")
    tie_break: TieBreak = "area"
    sizes_of_interest: tuple[float, ...] = (64.0, 128.0, 256.0, 512.0)
    lowest: float = -1.0

    def __post_init__(self) -> None:
        check_fields(self)
        bounds = (self.lowest, *self.sizes_of_interest)
        if any(low >= high for low, high in pairwise(bounds)):
            raise ValueError(
                f"AssignmentRule: lowest and sizes_of_interest are {bounds}; expected increasing numbers"
            )

    def levels(
        self,
        feature_sizes: Sequence[tuple[int, int]],
        image_size: tuple[int, int],
        strides: Sequence[int] = (8, 16, 32, 64, 128),
    ) -> list[fcos_fast.assignment.Level]:
        """The levels for feature maps of ``(height, width)`` cells and a padded image of ``(height, width)``."""
        if not len(feature_sizes) == len(strides) == len(self.sizes_of_interest) + 1:
            raise ValueError(
                f"AssignmentRule.levels: got {len(feature_sizes)} feature sizes, {len(strides)} strides and "
                f"{len(self.sizes_of_interest)} sizes of interest; expected n, n and n - 1"
            )
        from fcos_fast.assignment import Level  # needs torch

        bounds = (self.lowest, *self.sizes_of_interest, float("inf"))
        levels = []
        for i, ((height, width), stride) in enumerate(zip(feature_sizes, strides, strict=True)):
            step: tuple[float, float]
            if self.location == "grid":
                step = (
                    image_size[0] // height,
                    image_size[1] // width,
                )  # float() would fix the size in torch.export
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

Areas are (x2 - x1) * (y2 - y1). Official code adds 1 to both sides, because its boxes end at the last pixel inside.
"""
