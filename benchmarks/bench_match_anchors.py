"""RetinaNet's matching for four images of 800x1344, nine anchors per location on P3 to P7.

torchvision's is what ``RetinaNet.compute_loss`` does before its head's losses: ``box_iou`` and ``Matcher``, image by
image. Labels, which fcos_fast and the reference also give, are not in its time.
"""

from __future__ import annotations

import functools

import torch

from benchmarks.case import OURS, Case, torchvision
from benchmarks.data import FEATURE_SIZES, random_boxes
from fcos_fast import ops, reference
from fcos_fast.assignment import AnchorMatches, GroundTruth

IMAGES = 4
STRIDES = (8, 16, 32, 64, 128)


def make(device, count):
    boxes = [random_boxes(count, 8, 600).to(device) for _ in range(IMAGES)]
    labels = [torch.randint(91, (count,)).to(device) for _ in range(IMAGES)]
    levels = zip(FEATURE_SIZES, STRIDES, strict=True)
    anchors = torch.cat([anchors_of(size, stride) for size, stride in levels])
    return anchors.to(device), GroundTruth.pack(boxes, labels), boxes


def anchors_of(size, stride):
    """(height * width * 9, 4): three sizes from four strides on and three shapes, around every location."""
    side = 4 * stride * 2 ** (torch.arange(3) / 3)
    ratio = torch.tensor([0.5, 1.0, 2.0]).sqrt()
    half = torch.stack((side[:, None] / ratio, side[:, None] * ratio), dim=-1).reshape(9, 2) / 2
    y, x = (torch.arange(n) * stride for n in size)
    centers = torch.cartesian_prod(y, x).flip(1)[:, None]
    return torch.cat((centers - half, centers + half), dim=-1).reshape(-1, 4).round()


def by_torchvision(anchors, gt, boxes):
    matcher = torchvision.models.detection._utils.Matcher(0.5, 0.4, allow_low_quality_matches=True)
    return [matcher(torchvision.ops.box_iou(own, anchors)) for own in boxes]


def rows():
    rows = {"reference": lambda anchors, gt, boxes: reference.match_anchors(anchors, gt)}
    if torchvision:
        rows["torchvision"] = by_torchvision
    rows[OURS] = lambda anchors, gt, boxes: ops.match_anchors(anchors, gt)
    rows["floor: writing the matches"] = lambda anchors, gt, boxes: torch.zeros(
        2, IMAGES, len(anchors), dtype=torch.int32, device=anchors.device
    )
    return rows


def check(result, expected, count):
    assert torch.equal(matches(result, count), matches(expected, count))


def matches(result, count):
    """(B, A) matched box of each anchor, counted within its image."""
    if not isinstance(result, AnchorMatches):
        return torch.stack(result)
    return torch.where(result.matched >= 0, result.matched % count, result.matched).long()


CASES = [
    Case(
        "match_anchors",
        f"{IMAGES} images 800x1344, {count} boxes each",
        functools.partial(make, count=count),
        rows(),
        functools.partial(check, count=count),
    )
    for count in (20, 100)
]


def test_match_anchors(time_row):
    time_row()
