"""Non-maximum suppression of one set of boxes, of boxes with 91 classes, and of 16 images at once.

torchvision has no function for several images, so the peer calls ``batched_nms`` image by image. That function adds a
per-class offset to the coordinates of few boxes (up to 25,000 on a GPU), so its results depend on the rounding of these
sums. If they differ, ours are checked against the definition of NMS.
"""

from __future__ import annotations

import functools

import torch

from benchmarks.case import Case, torchvision
from benchmarks.data import clustered_boxes, distinct_scores, jittered, random_boxes
from benchmarks.rows import OURS
from fcos_fast import ops, reference
from tests.ops.nms_agreement import assert_agree, assert_greedy

THRESHOLD = 0.6
CLASSES = 91
IMAGES = 16


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


def check(kept, expected, data):
    assert_agree(kept, expected, *data, THRESHOLD)


def check_batched(kept, expected, data):
    boxes, scores, classes = data
    if not torch.equal(kept, expected):
        assert_greedy(kept, boxes, scores, THRESHOLD, classes)


def make_images(device, count):
    images = [make(device, clustered_boxes, count, CLASSES) for _ in range(IMAGES)]
    return [torch.stack(of_kind) for of_kind in zip(*images, strict=True)]


def padded_rows(most):
    def by_torchvision(*images):
        return [torchvision.ops.batched_nms(*image, THRESHOLD)[:most] for image in zip(*images, strict=True)]

    rows = {"reference": lambda *images: reference.nms_padded(*images, THRESHOLD, most)}
    if torchvision:
        rows["torchvision"] = by_torchvision
    rows[OURS] = lambda *images: ops.nms_padded(*images, THRESHOLD, most)
    return rows


def check_padded(result, expected, data, most):
    for kept, peer, boxes, scores, classes in zip(split(result), split(expected), *data, strict=True):
        if torch.equal(kept, peer):
            continue
        assert len(kept) <= most
        # Nothing is kept after the last of ``most``, so check only boxes whose score is at least that of the last one.
        seen = scores >= scores[kept[-1]] if len(kept) == most else torch.ones_like(scores, dtype=torch.bool)
        place = seen.cumsum(0) - 1
        assert_greedy(place[kept], boxes[seen], scores[seen], THRESHOLD, classes[seen])


def split(kept):
    """Convert (indices, counts) to one tensor per image, like the peer."""
    if isinstance(kept, list):
        return kept
    return [indices[:count] for indices, count in zip(*kept, strict=True)]


def tight_clusters(count):
    """Boxes around 60 objects: few are kept, the best case for torchvision."""
    return jittered(random_boxes(60, 32, 400)[torch.randint(60, (count,))], 0.03)


small_boxes = functools.partial(random_boxes, smallest=8, largest=32)  # hardly any box is suppressed

SYNCHRONIZES = {"synchronizes": True, "peer_synchronizes": True, "slow_on_cuda": ("reference",)}

CASES = (
    [
        Case(
            "nms",
            title,
            functools.partial(make, boxes=boxes, count=count),
            rows("nms"),
            check,
            devices=("cuda",) if count == 100_000 else ("cpu", "cuda"),
            **SYNCHRONIZES,
        )
        for title, boxes, count in (
            ("1,000 clustered boxes", clustered_boxes, 1_000),
            ("5,000 clustered boxes", clustered_boxes, 5_000),
            ("20,000 clustered boxes", clustered_boxes, 20_000),
            ("20,000 boxes in 60 tight clusters", tight_clusters, 20_000),
            ("20,000 random boxes", small_boxes, 20_000),
            ("100,000 clustered boxes", clustered_boxes, 100_000),
            ("100,000 random boxes", small_boxes, 100_000),
        )
    ]
    + [
        Case(
            "batched_nms",
            f"{count:,} clustered boxes of {CLASSES} classes",
            functools.partial(make, boxes=clustered_boxes, count=count, classes=CLASSES),
            rows("batched_nms"),
            check_batched,
            **SYNCHRONIZES,
        )
        for count in (1_000, 20_000)
    ]
    + [
        Case(
            "nms_padded",
            f"{IMAGES} x 5,000 clustered boxes of {CLASSES} classes, at most {most:,} kept",
            functools.partial(make_images, count=5_000),
            padded_rows(most),
            functools.partial(check_padded, most=most),
            peer_synchronizes=True,
            slow_on_cuda=("reference",),
        )
        for most in (100, 5_000)
    ]
)


def test_nms(time_row):
    time_row()
