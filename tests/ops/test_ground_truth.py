"""Packed ground truth of fixed capacity: the padding is never read."""

from __future__ import annotations

import math
from dataclasses import fields

import pytest
import torch

from fcos_fast import ops, reference
from fcos_fast.assignment import RULES, GroundTruth, bucket_capacity

RULE = RULES["official-improved"]
LEVELS = RULE.levels([(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)], (128, 192))
BOXES = [
    torch.tensor([[10.0, 12, 60, 70], [30, 20, 150, 100]]),
    torch.zeros(0, 4),
    torch.tensor([[4.0, 4, 44, 50]]),
]
LABELS = [torch.tensor([0, 1]), torch.zeros(0, dtype=torch.int64), torch.tensor([2])]
ANCHORS = torch.tensor([[8.0, 8, 58, 70], [0, 0, 40, 48], [100, 60, 140, 100], [62, 30, 92, 60]])

OPERATORS = {
    "assign_targets": lambda module, gt: module.assign_targets(gt, LEVELS, RULE),
    "match_anchors": lambda module, gt: module.match_anchors(ANCHORS.to(gt.boxes.device), gt),
}
# If read as a box, the first would be assigned in every image; the others would raise.
PADDING = {
    "takes": ([60.0, 30, 92, 62], 5),
    "nan": ([math.nan] * 4, 5),
    "no_area": ([9.0, 9, 9, 9], 5),
    "label": ([60.0, 30, 92, 62], -7),
}


@pytest.mark.parametrize("padding", PADDING)
@pytest.mark.parametrize("module", [ops, reference], ids=["ops", "reference"])
@pytest.mark.parametrize("name", OPERATORS)
def test_padding_is_never_read(name, module, padding, device):
    expected = OPERATORS[name](module, GroundTruth.pack(BOXES, LABELS).to(device))
    gt = GroundTruth.pack(BOXES, LABELS, capacity=16)
    box, label = PADDING[padding]
    gt.boxes[3:] = torch.tensor(box)
    gt.labels[3:] = label
    actual = OPERATORS[name](module, gt.to(device))
    for field in fields(expected):
        assert torch.equal(getattr(actual, field.name), getattr(expected, field.name)), field.name


@pytest.mark.parametrize("name", OPERATORS)
def test_a_batch_without_boxes_is_all_padding(name, device):
    nothing = [torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2
    gt = GroundTruth.pack(*nothing, capacity=16)
    gt.boxes[:] = torch.tensor([60.0, 30, 92, 62])
    assert (OPERATORS[name](ops, gt.to(device)).matched == -1).all()


def test_an_invalid_box_before_the_padding_raises():
    gt = GroundTruth.pack(BOXES, LABELS, capacity=16)
    gt.boxes[2] = torch.tensor([5.0, 5, 5, 9])
    with pytest.raises(ValueError, match="box 2 is"):
        ops.assign_targets(gt, LEVELS, RULE)


def test_capacity():
    gt = GroundTruth.pack(BOXES, LABELS, capacity=16)
    assert gt.boxes.shape == (16, 4)
    assert gt.labels.shape == (16,)
    assert gt.starts.tolist() == [0, 2, 2, 3]
    assert torch.equal(gt.boxes[:3], torch.cat(BOXES))
    with pytest.raises(ValueError, match="capacity is 2 but there are 3 boxes"):
        GroundTruth.pack(BOXES, LABELS, capacity=2)
    assert [bucket_capacity(n) for n in (0, 16, 17, 64, 65, 1025)] == [16, 16, 64, 64, 256, 4096]
