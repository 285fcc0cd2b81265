"""Inference on two (on a GPU sixteen) 800x1088 images, from pixels to boxes."""

from __future__ import annotations

import functools

import torch

from benchmarks.case import Case
from benchmarks.models.resnet50 import DTYPE, IMAGES, convolutions, make_batch, ways
from benchmarks.rows import OURS

SIZE = (800, 1088)


def detect(way):
    def run(images, _):
        with torch.no_grad(), way.autocast(images[0].device):
            return way.ready(images, training=False)(images)

    return run


def check(result, expected, data):
    """Compare the sorted scores of each image's detections."""
    tolerance = 1e-3 if torch.float32 == DTYPE else 0.05
    for found, peer in zip(result, expected, strict=True):
        assert len(found["scores"]) == len(peer["scores"]) == 100
        torch.testing.assert_close(found["scores"], peer["scores"].float(), rtol=tolerance, atol=0)


CASES = [
    Case(
        "inference",
        f"FCOS-R50, {IMAGES} images {SIZE[0]}x{SIZE[1]}, {title}",
        functools.partial(make_batch, size=SIZE),
        {
            "torchvision": detect(theirs),
            OURS: detect(ours),
            "floor: PyTorch's convolutions alone": convolutions("FCOS", False, ours.channels_last),
        },
        check,
        synchronizes=True,
        peer_synchronizes=True,
    )
    for title, (theirs, ours) in ways("FCOS").items()
]


def test_inference(time_row):
    time_row()
