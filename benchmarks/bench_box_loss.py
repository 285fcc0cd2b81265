"""Sum of a loss between predicted and target boxes, and the gradient of the predicted boxes."""

from __future__ import annotations

import functools

import torch

from benchmarks.case import Case, close, loss_and_gradients, nbytes, torchvision
from benchmarks.data import jittered, random_boxes
from benchmarks.rows import COMPILED, OURS
from fcos_fast import ops, reference

PEERS = {
    "giou": "generalized_box_iou_loss",
    "diou": "distance_box_iou_loss",
    "ciou": "complete_box_iou_loss",
}


def make(device, count):
    target = random_boxes(count, 16, 400)
    return jittered(target, 0.3).to(device).requires_grad_(), target.to(device)


def rows(kind):
    rows = {
        "reference": summed(reference.box_loss, kind=kind),
        COMPILED: summed(torch.compile(reference.box_loss), kind=kind),
    }
    if torchvision:
        rows["torchvision"] = summed(getattr(torchvision.ops, PEERS[kind]))
    rows[OURS] = summed(ops.box_loss, kind=kind)
    rows["floor: copy of the boxes"] = lambda pred, target: pred.detach().clone()
    return rows


def summed(loss, **kwargs):
    return loss_and_gradients(lambda pred, target: loss(pred, target, reduction="sum", **kwargs))


CASES = [
    Case(
        "box_loss",
        f"{kind}, {count:,} pairs float32",
        functools.partial(make, count=count),
        rows(kind),
        close(rtol=1e-4, atol=1e-5),
        peer_synchronizes=torchvision is not None,  # it counts the overlapping boxes
        bytes_moved=lambda pred, target: 3 * nbytes(pred),  # both are read, a gradient is written
    )
    for kind in PEERS
    for count in (2_000, 20_000)
]


def test_box_loss(time_row):
    time_row()
