"""Tests of nms_agreement: which differences between two NMS results it accepts."""

from __future__ import annotations

import pytest
import torch

from fcos_fast import ops
from tests.ops.nms_agreement import assert_agree, assert_greedy

ULP = 2**-24  # of float32 from 1/2 to 1


def pair(units: float, threshold: float = 0.5):
    """Two boxes whose IoU is ``units`` units in the last place above the threshold, in descending score order."""
    width = 4 * (threshold + units * ULP)
    boxes = torch.tensor([[0.0, 0, 4, 1], [0.0, 0, width, 1]], dtype=torch.float64)
    assert boxes.float().double().equal(boxes)
    return boxes.float(), torch.tensor([0.9, 0.8]), threshold


BOTH, FIRST = torch.tensor([0, 1]), torch.tensor([0])


@pytest.mark.parametrize("units", [-1, 0, 1])
def test_either_decision_is_right_within_one_unit(units):
    assert_agree(BOTH, FIRST, *pair(units))
    assert_agree(FIRST, BOTH, *pair(units))


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    ("units", "message"),
    [(2, r"0 and 1 are both kept, whose IoU is 2\.0 units"), (-2, "box 1 is missing, though no kept box")],
)
def test_two_units_away_is_a_difference(units, message, swap):
    results = (FIRST, BOTH) if swap else (BOTH, FIRST)
    with pytest.raises(AssertionError, match=message):
        assert_agree(*results, *pair(units))


def test_consequences_of_such_a_decision_are_accepted():
    """Whether the first suppresses the second decides about the third, which only the second suppresses."""
    boxes, scores, threshold = pair(0)
    boxes = torch.cat([boxes, torch.tensor([[0.0, 0, 1.5, 1]])])
    scores = torch.cat([scores, torch.tensor([0.7])])
    assert_agree(torch.tensor([0, 1]), torch.tensor([0, 2]), boxes, scores, threshold)
    with pytest.raises(AssertionError, match="1 and 2 are both kept"):
        assert_agree(torch.tensor([0, 1]), torch.tensor([0, 1, 2]), boxes, scores, threshold)
    with pytest.raises(AssertionError, match="box 2 is missing"):
        assert_agree(torch.tensor([0]), torch.tensor([0, 2]), boxes, scores, threshold)


def test_order_and_distinctness():
    boxes, scores, threshold = pair(-100)
    assert_greedy(BOTH, boxes, scores, threshold)
    for wrong in (BOTH.flip(0), torch.tensor([0, 0, 1])):
        with pytest.raises(AssertionError, match="not in the order"):
            assert_greedy(wrong, boxes, scores, threshold)


def test_boxes_of_other_classes_do_not_suppress():
    boxes, scores, threshold = pair(100)
    assert_greedy(BOTH, boxes, scores, threshold, idxs=torch.tensor([0, 1]))
    with pytest.raises(AssertionError, match="both kept"):
        assert_greedy(BOTH, boxes, scores, threshold, idxs=torch.tensor([1, 1]))


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.6, 1.0])
def test_accepts_our_result_and_rejects_any_other(threshold, monkeypatch):
    monkeypatch.setattr("tests.ops.nms_agreement.CHUNK", 5000)  # several chunks
    corner = torch.rand(400, 2) * 60
    boxes = torch.cat([corner, corner + 5 + 20 * torch.rand(400, 2)], dim=1)
    scores, idxs = torch.randperm(400) / 400, torch.randint(2, (400,))
    for classes, kept in (
        (None, ops.nms(boxes, scores, threshold)),
        (idxs, ops.batched_nms(boxes, scores, idxs, threshold)),
    ):
        assert_greedy(kept, boxes, scores, threshold, classes)
        for place in torch.randperm(len(kept))[:20]:
            without = torch.cat([kept[:place], kept[place + 1 :]])
            with pytest.raises(AssertionError, match="is missing, though no kept box"):
                assert_greedy(without, boxes, scores, threshold, classes)
    assert_greedy(ops.nms(boxes[:0], scores[:0], threshold), boxes[:0], scores[:0], threshold)
