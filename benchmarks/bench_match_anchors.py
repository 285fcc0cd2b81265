"""RetinaNet's matching for images of 800x1344, nine anchors per location on P3 to P7.

The torchvision row is what ``RetinaNet.compute_loss`` does before the losses: ``box_iou`` and ``Matcher``, image by
image. Its time does not include labels, which fcos_fast and the reference also compute.
"""

from __future__ import annotations

import functools

import torch

from benchmarks.case import Case, nbytes, torchvision
from benchmarks.data import FEATURE_SIZES, STRIDES, random_boxes
from benchmarks.rows import OURS
from fcos_fast import ops, reference
from fcos_fast.assignment import AnchorMatches, GroundTruth

IMAGES = {"cpu": 4, "cuda": 16}


def make(device, images, count):
    boxes = [random_boxes(count, 8, 600).to(device) for _ in range(images)]
    labels = [torch.randint(91, (count,)).to(device) for _ in range(images)]
    levels = zip(FEATURE_SIZES, STRIDES, strict=True)
    anchors = torch.cat([anchors_of(size, stride) for size, stride in levels])
    return anchors.to(device), GroundTruth.pack(boxes, labels), boxes


def anchors_of(size, stride):
    """(height * width * 9, 4): three sizes (from four strides) and three aspect ratios at every location."""
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
        2, len(boxes), len(anchors), dtype=torch.int32, device=anchors.device
    )
    return rows


def check(result, expected, data, count):
    assert torch.equal(matches(result, count), matches(expected, count))


def matches(result, count):
    """(B, A) index of the matched box within its image."""
    if not isinstance(result, AnchorMatches):
        return torch.stack(result)
    return torch.where(result.matched >= 0, result.matched % count, result.matched).long()


CASES = [
    Case(
        "match_anchors",
        f"{images} images 800x1344, {count} boxes each",
        functools.partial(make, images=images, count=count),
        rows(),
        functools.partial(check, count=count),
        peer_synchronizes=torchvision is not None,
        devices=(device,),
        # read every anchor; write its label and row for each image
        bytes_moved=lambda anchors, gt, boxes: nbytes(anchors) + len(boxes) * len(anchors) * 2 * 4,
    )
    for device, images in IMAGES.items()
    for count in (20, 100)
]


def test_match_anchors(time_row):
    time_row()
