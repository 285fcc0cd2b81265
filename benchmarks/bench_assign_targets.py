"""Target assignment for 16 images of 800x1344, with torchvision's rule.

The torchvision row is the body of ``FCOS.compute_loss`` up to its last line, which passes the matches to the head: here
the head returns them. Its time does not include anchors, or labels, distances and centerness, which fcos_fast and the
reference also compute. There is no torch.compile row, because unrolling the reference's loop over images takes minutes.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace

import torch

from benchmarks.case import Case, torchvision
from benchmarks.data import FEATURE_SIZES, IMAGE, random_boxes
from benchmarks.rows import OURS
from fcos_fast import ops, reference
from fcos_fast.assignment import RULES, GroundTruth, Targets

IMAGES = 16
RULE = RULES["torchvision"]
LEVELS = RULE.levels(FEATURE_SIZES, IMAGE)


def make(device, count):
    boxes = [random_boxes(count, 8, 600).to(device) for _ in range(IMAGES)]
    labels = [torch.randint(91, (count,)).to(device) for _ in range(IMAGES)]
    targets = [{"boxes": b, "labels": c} for b, c in zip(boxes, labels, strict=True)]
    anchors = torch.cat([anchors_of(level) for level in LEVELS]).to(device)
    return GroundTruth.pack(boxes, labels), targets, [anchors] * IMAGES


def anchors_of(level):
    """torchvision represents a location by a box of the size of the stride."""
    points = level.points()
    return torch.cat((points - level.stride / 2, points + level.stride / 2), dim=1)


def by_torchvision(gt, targets, anchors):
    head = SimpleNamespace(compute_loss=lambda targets, head_outputs, anchors, matches: matches)
    fcos = SimpleNamespace(head=head, center_sampling_radius=RULE.radius)
    counts = [height * width for height, width in FEATURE_SIZES]
    return torchvision.models.detection.FCOS.compute_loss(fcos, targets, {}, anchors, counts)


def rows():
    rows = {"reference": lambda gt, targets, anchors: reference.assign_targets(gt, LEVELS, RULE)}
    if torchvision:
        rows["torchvision"] = by_torchvision
    rows[OURS] = lambda gt, targets, anchors: ops.assign_targets(gt, LEVELS, RULE)
    rows["floor: writing the targets"] = write_targets
    return rows


def write_targets(gt, targets, anchors):
    """Label, matched box, four distances and centerness of every location: seven four-byte numbers."""
    return torch.empty(IMAGES, len(anchors[0]), 7, device=gt.boxes.device).fill_(1)


def check(result, expected, data, count):
    assert torch.equal(matches(result, count), matches(expected, count))


def matches(result, count):
    """(B, P) index of the matched box within its image."""
    if not isinstance(result, Targets):
        return torch.stack(result)
    return torch.where(result.matched >= 0, result.matched % count, -1).long()


CASES = [
    Case(
        "assign_targets",
        f"{IMAGES} images 800x1344, {count} boxes each",
        functools.partial(make, count=count),
        rows(),
        functools.partial(check, count=count),
        bytes_moved=lambda gt, targets, anchors: IMAGES * len(anchors[0]) * 7 * 4,
    )
    for count in (20, 300)
]


def test_assign_targets(time_row):
    time_row()
