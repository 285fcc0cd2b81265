"""Non-maximum suppression of one set of boxes, and of boxes of 91 classes."""

from __future__ import annotations

import functools

import torch

from benchmarks.case import OURS, Case, torchvision
from benchmarks.data import clustered_boxes, distinct_scores, random_boxes
from fcos_fast import ops, reference

THRESHOLD = 0.6
CLASSES = 91


def make(device, boxes, count, classes=None):
    data = [boxes(count), distinct_scores(count)]
    if classes:
        data.append(torch.randint(classes, (count,)))
    return [t.to(device) for t in data]


def rows(name):
    rows = {"reference": functools.partial(call, getattr(reference, name))}
    if torchvision:
        rows["torchvision"] = functools.partial(call, getattr(torchvision.ops, name))
    rows[OURS] = functools.partial(call, getattr(ops, name))
    return rows


def call(nms, *data):
    return nms(*data, THRESHOLD)


def check(kept, expected):
    assert torch.equal(kept, expected)


small_boxes = functools.partial(random_boxes, smallest=8, largest=32)  # hardly any is suppressed

CASES = [
    Case("nms", title, functools.partial(make, boxes=boxes, count=count), rows("nms"), check, waits=True)
    for title, boxes, count in (
        ("1,000 clustered boxes", clustered_boxes, 1_000),
        ("5,000 clustered boxes", clustered_boxes, 5_000),
        ("20,000 clustered boxes", clustered_boxes, 20_000),
        ("20,000 random boxes", small_boxes, 20_000),
    )
] + [
    Case(
        "batched_nms",
        f"{count:,} clustered boxes of {CLASSES} classes",
        functools.partial(make, boxes=clustered_boxes, count=count, classes=CLASSES),
        rows("batched_nms"),
        check,
        waits=True,
    )
    for count in (1_000, 20_000)
]


def test_nms(time_row):
    time_row()
