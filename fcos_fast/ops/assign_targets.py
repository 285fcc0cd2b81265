"""Target assignment: which box each location of the feature pyramid is to predict."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fcos_fast import reference
from fcos_fast._extension import cpu_error, use_native
from fcos_fast.assignment import RULE_CHOICES, AssignmentRule, GroundTruth, Level, Targets
from fcos_fast.ops import _checks
from fcos_fast.ops._register import register_fake


def assign_targets(gt: GroundTruth, levels: Sequence[Level], rule: AssignmentRule) -> Targets:
    """Assign boxes to the locations of all levels for the whole batch at once (Tian et al., "FCOS", 2019, section 3.1).

    It depends on the ground truth and the grid alone, so it can run before the network.

    Args:
        gt: packed boxes in pixels of the (padded) images, labels, and where each image begins.
        levels: of the feature pyramid, best from ``rule.levels(feature_sizes, image_size)``.
        rule: the choices in which the published FCOS differ; ``fcos_fast.assignment.RULES`` has them by name.
            Boundaries and ties fall as in the named implementation's float32 arithmetic.

    Returns:
        Labels, matched boxes, distances and centerness per location, and their totals; see :class:`Targets`.

    Raises:
        TypeError, ValueError: wrong dtype, shape or device; on the host, and under FCOS_FAST_CHECK=1 anywhere, also a
            box with x2 <= x1 or y2 <= y1, a NaN, or a negative label. Unchecked, such a box is never assigned.
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
            gt.boxes, gt.labels, gt.starts, sizes, geometry, *_rule_numbers(rule), float(rule.radius)
        )
    )


def _rule_numbers(rule: AssignmentRule) -> tuple[int, ...]:
    """The rule's choices as the enumerations of csrc/math/assign_targets.h, which has them in the same order."""
    names = ("range_test", "sampling", "tie_break")
    return tuple(RULE_CHOICES[name].index(getattr(rule, name)) for name in names)


def _check(gt: GroundTruth, levels: Sequence[Level]) -> None:
    op = "assign_targets"
    if gt.boxes.dtype != torch.float32 or gt.boxes.ndim != 2 or gt.boxes.shape[1] != 4:
        raise TypeError(
            f"{op}: boxes are {gt.boxes.dtype} of shape {tuple(gt.boxes.shape)}; expected float32 (M, 4), as "
            "GroundTruth.pack makes them"
        )
    for name, tensor in (("labels", gt.labels), ("starts", gt.starts)):
        if tensor.dtype != torch.int64 or tensor.ndim != 1:
            raise TypeError(
                f"{op}: {name} are {tensor.dtype} of shape {tuple(tensor.shape)}; expected int64, one axis"
            )
    if gt.labels.shape[0] != gt.boxes.shape[0]:
        raise ValueError(f"{op}: {gt.labels.shape[0]} labels for {gt.boxes.shape[0]} boxes")
    if gt.starts.shape[0] < 2:
        raise ValueError(
            f"{op}: starts has {gt.starts.shape[0]} entries; expected B + 1 of at least one image"
        )
    if len(levels) == 0:
        raise ValueError(f"{op}: no level; expected at least one, as rule.levels(...) makes them")
    _checks.check_same_device(op, boxes=gt.boxes, labels=gt.labels, starts=gt.starts)
    if gt.boxes.numel() > 0 and _checks.checks_values(gt.boxes):
        _check_values(op, gt)


def _check_values(op: str, gt: GroundTruth) -> None:
    wrong = ~((gt.boxes[:, 2:] > gt.boxes[:, :2]).all(dim=1))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"{op}: box {row} is {gt.boxes[row].tolist()}; expected x1 < x2 and y1 < y2 in pixels. "
            "Leave boxes without an area out."
        )
    if (gt.labels < 0).any():
        raise ValueError(f"{op}: label {int(gt.labels.min())}; expected classes 0..C-1")


if cpu_error is None:

    @register_fake("assign_targets")
    def _fake_assign_targets(boxes, labels, starts, sizes, geometry, range_test, sampling, tie_break, radius):
        batch = starts.shape[0] - 1
        locations = sum(height * width for height, width in zip(sizes[::2], sizes[1::2], strict=True))
        integers = {"dtype": torch.int32}
        return (
            boxes.new_empty((batch, locations), **integers),
            boxes.new_empty((batch, locations), **integers),
            boxes.new_empty((batch, locations, 4)),
            boxes.new_empty((batch, locations)),
            boxes.new_empty((2,)),
        )
