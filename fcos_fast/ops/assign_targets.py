"""Target assignment: which ground-truth box each location of the feature pyramid predicts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fcos_fast import reference
from fcos_fast._extension import cpu_error, use_native
from fcos_fast.assignment import MAX_SIDE, AssignmentRule, GroundTruth, Level, Targets
from fcos_fast.ops import _checks
from fcos_fast.ops._checks import ArgumentValueError
from fcos_fast.ops._register import register_fake


def assign_targets(gt: GroundTruth, levels: Sequence[Level], rule: AssignmentRule) -> Targets:
    """Assign ground-truth boxes to the locations of all levels and images (Tian et al., "FCOS", 2019, section 3.1).

    Needs only the ground truth and the sizes of the feature maps, so it can run before the network.

    Args:
        gt: packed boxes and labels of the batch; boxes are in pixels of the padded images.
        levels: the levels of the feature pyramid, usually ``rule.levels(feature_sizes, image_size)``.
        rule: the assignment rule, for example from ``fcos_fast.assignment.RULES``, which has those of the published
            implementations. Boundaries and ties are resolved exactly as in their float32 arithmetic.

    Returns:
        Labels, matched boxes, distances and centerness per location, and their totals; see
        :class:`~fcos_fast.assignment.Targets`.

    Raises:
        TypeError: wrong dtype or number of dimensions.
        ValueError: wrong shape or device, a box with x2 <= x1 or y2 <= y1, a NaN, or a negative label. Values are only
            checked on the CPU or with ``FCOS_FAST_CHECK=1``; otherwise such a box is never assigned.
    """
    _check(gt, levels)
    if not use_native(gt.boxes):
        return reference.assign_targets(gt, levels, rule)
    sizes = [size for level in levels for size in (level.height, level.width)]
    geometry = [
        float(number)
        for level in levels
        for number in (level.stride, *level.step, *level.offset, *level.size_range)
    ]
    return Targets(
        *torch.ops.fcos_fast.assign_targets(
            gt.boxes,
            gt.labels,
            gt.starts,
            sizes,
            geometry,
            rule.range_test,
            rule.sampling,
            rule.tie_break,
            float(rule.radius),
        )
    )


def _check(gt: GroundTruth, levels: Sequence[Level]) -> None:
    op = "assign_targets"
    if len(levels) == 0:
        raise ArgumentValueError(
            f"{op}: levels is empty; expected at least one level, usually rule.levels(...)"
        )
    for i, level in enumerate(levels):
        if not torch.compiler.is_compiling() and not (
            0 <= level.height <= MAX_SIDE and 0 <= level.width <= MAX_SIDE
        ):
            raise ArgumentValueError(
                f"{op}: levels[{i}] is {level.height}x{level.width} cells; expected 0..{MAX_SIDE} rows and columns"
            )
    _checks.check_ground_truth(op, gt)


if cpu_error is None:

    @register_fake("assign_targets")
    def _fake_assign_targets(
        boxes: Tensor, labels: Tensor, starts: Tensor, sizes: Sequence[int], *rule: object
    ) -> tuple[Tensor, ...]:
        batch = starts.shape[0] - 1
        locations = sum(height * width for height, width in zip(sizes[::2], sizes[1::2], strict=True))
        return (
            boxes.new_empty((batch, locations), dtype=torch.int32),
            boxes.new_empty((batch, locations), dtype=torch.int32),
            boxes.new_empty((batch, locations, 4)),
            boxes.new_empty((batch, locations)),
            boxes.new_empty((2,)),
        )
