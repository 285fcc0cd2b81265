"""A whole training step: forward, losses, backward and optimizer, of two (on a GPU sixteen) 800x1066 images."""

from __future__ import annotations

import functools

import torch

from benchmarks.case import OURS, Case
from benchmarks.models.resnet50 import DTYPE, IMAGES, compared, convolutions, make_batch

SIZE = (800, 1066)


def step(way):
    optimizer = None

    def run(images, targets):
        nonlocal optimizer
        device = images[0].device
        model = way.ready(device).train()
        if optimizer is None:
            parameters = [p for p in model.parameters() if p.requires_grad]
            optimizer = torch.optim.SGD(parameters, lr=1e-6, momentum=0.9, weight_decay=1e-4)
        with way.autocast(device):
            losses = model(images, targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        return torch.stack([loss.detach().float() for loss in losses.values()])

    return run


def check(result, expected, data):
    """The losses of the first step; in 16 bits torchvision loses whole pixels of its boxes."""
    tolerance = 1e-4 if torch.float32 == DTYPE else 0.05
    torch.testing.assert_close(result, expected, rtol=tolerance, atol=0)


CASES = [
    Case(
        "training_step",
        f"FCOS-R50, {IMAGES} images {SIZE[0]}x{SIZE[1]}, {title}",
        functools.partial(make_batch, size=SIZE),
        {
            "torchvision": step(theirs),
            OURS: step(ours),
            "floor: its convolutions": convolutions(True, ours.channels_last),
        },
        check,
        waits=True,
        peer_waits=True,
    )
    for title, theirs, ours in compared()
]


def test_training_step(time_row):
    time_row()
