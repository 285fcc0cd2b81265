"""RetinaNet's box loss: only matched anchors count."""

from __future__ import annotations

import math

import pytest
import torch

from fcos_fast.assignment import GroundTruth
from fcos_fast.models.anchors import encode_boxes, matched_box_loss
from fcos_fast.models.transform import ImageBatch

ANCHORS = torch.tensor([[0.0, 0, 10, 10], [5, 5, 25, 15], [0, 0, 40, 20], [30, 30, 40, 60]])
BOXES = torch.tensor([[1.0, 2, 12, 11], [3, 3, 30, 20]])
MATCHED = torch.tensor([[-1, 0, -2, 1], [-1, -1, -1, -1]], dtype=torch.int32)


def squares(deltas, anchors, boxes):
    return (deltas - encode_boxes(boxes, anchors)).square().sum(dim=1)


def by_hand(deltas):
    """The loss of each pair, in float64."""
    sums = []
    for row, matched in zip(deltas.double(), MATCHED.tolist(), strict=True):
        total = 0.0
        for delta, (ax1, ay1, ax2, ay2), m in zip(row.tolist(), ANCHORS.tolist(), matched, strict=True):
            if m >= 0:
                x1, y1, x2, y2 = BOXES[m].tolist()
                code = (
                    ((x1 + x2) / 2 - (ax1 + ax2) / 2) / (ax2 - ax1),
                    ((y1 + y2) / 2 - (ay1 + ay2) / 2) / (ay2 - ay1),
                    math.log((x2 - x1) / (ax2 - ax1)),
                    math.log((y2 - y1) / (ay2 - ay1)),
                )
                total += sum((d - c) ** 2 for d, c in zip(delta, code, strict=True))
        sums.append(total)
    return sums


def in_one_graph(*arguments):
    """The code path of GPUs, where the host does not know the number of matched anchors."""
    compiled = torch.compile(matched_box_loss, backend="aot_eager", fullgraph=True)
    return compiled(*arguments)


both_ways = pytest.mark.parametrize("function", [matched_box_loss, in_one_graph], ids=["gathered", "masked"])


@both_ways
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_sums_of_each_image(function, dtype):
    deltas = torch.randn(2, 4, 4).to(dtype)
    found = function(deltas, MATCHED, ANCHORS, BOXES, squares)
    assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert found.tolist() == pytest.approx(by_hand(deltas), rel=1e-5)
    assert found[1] == 0


@both_ways
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 3e38])
def test_unmatched_anchors_have_no_effect(function, value):
    plain = torch.randn(2, 4, 4, requires_grad=True)
    wild = plain.detach().clone()
    wild[MATCHED < 0] = value
    wild.requires_grad_()
    losses = [function(x, MATCHED, ANCHORS, BOXES, squares) for x in (plain, wild)]
    assert torch.equal(*losses)
    for loss in losses:
        loss.sum().backward()
    assert torch.equal(wild.grad, plain.grad)
    assert (wild.grad[MATCHED < 0] == 0).all()
    assert (wild.grad[MATCHED >= 0] != 0).all()


@both_ways
def test_nothing_matched_and_no_box(function):
    deltas = torch.full((2, 4, 4), math.inf, requires_grad=True)
    losses = function(deltas, torch.full_like(MATCHED, -1), ANCHORS, torch.zeros(0, 4), squares)
    assert losses.tolist() == [0, 0]
    losses.sum().backward()
    assert (deltas.grad == 0).all()


def test_pairs_without_a_match_are_not_computed():
    seen = []

    def loss(deltas, anchors, boxes):
        seen.append(len(deltas))
        return squares(deltas, anchors, boxes)

    matched_box_loss(torch.randn(2, 4, 4), MATCHED, ANCHORS, BOXES, loss)
    assert seen == [2]


@pytest.mark.parametrize("box_loss", ["l1", "smooth_l1", "giou", "ciou", "iou"])
def test_an_infinite_delta_of_a_background_anchor(small_model, box_loss):
    """The gradients of a model's losses stay finite."""
    model = small_model(backbone="resnet18", preset="retinanet", box_loss=box_loss)
    batch = ImageBatch(torch.zeros(1, 3, 64, 96), [(64, 96)])
    gt = GroundTruth.pack([torch.tensor([[10.0, 12, 50, 60]])], [torch.tensor([1])])
    targets = model.assign(batch, gt)
    logits, deltas = ([torch.zeros_like(x) for x in maps] for maps in model.network(batch.tensor))
    columns = deltas[0].shape[-1]
    first = int((targets.labels[0] < 0).nonzero()[0])  # of 9 anchors at each location
    cell, anchor = divmod(first, 9)
    deltas[0][0, 4 * anchor : 4 * anchor + 4, cell // columns, cell % columns] = math.inf
    for x in deltas:
        x.requires_grad_()
    model.network = lambda _: (logits, deltas)
    loss = model.losses(batch.tensor, targets)["bbox_regression"]
    loss.backward()
    assert loss.isfinite()
    assert loss > 0
    assert all(x.grad.isfinite().all() for x in deltas)
