"""How locations find their box: the rules of the published FCOS.

A part of the configuration, which the command line reads without torch; :mod:`fcos_fast.assignment` has what the rules
are applied to.
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
    radius: float = checked(1.5, lambda radius: radius > 0, "a positive number of strides")
    tie_break: TieBreak = "area"
    sizes_of_interest: tuple[float, ...] = (64.0, 128.0, 256.0, 512.0)
    lowest: float = -1.0

    def __post_init__(self) -> None:
        check_fields(self)
        bounds = (self.lowest, *self.sizes_of_interest)
        if any(low >= high for low, high in pairwise(bounds)):
            raise ValueError(
                f"AssignmentRule: lowest and sizes_of_interest are {bounds}; expected them to rise"
            )

    def levels(
        self,
        feature_sizes: Sequence[tuple[int, int]],
        image_size: tuple[int, int],
        strides: Sequence[int] = (8, 16, 32, 64, 128),
    ) -> list[fcos_fast.assignment.Level]:
        """Lay the rule over feature maps of ``(height, width)`` cells, for a padded image of ``(height, width)``."""
        if not len(feature_sizes) == len(strides) == len(self.sizes_of_interest) + 1:
            raise ValueError(
                f"AssignmentRule.levels: got {len(feature_sizes)} feature sizes, {len(strides)} strides and "
                f"{len(self.sizes_of_interest)} sizes of interest; expected n, n and n - 1"
            )
        from fcos_fast.assignment import Level  # which needs torch

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
