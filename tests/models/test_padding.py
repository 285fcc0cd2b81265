from __future__ import annotations

import math

import pytest
import torch

from fcos_fast import ops
from fcos_fast.assignment import IGNORED, RULES, GroundTruth
from fcos_fast.models import FCOSConfig
from fcos_fast.models.padding import ignore_outside

SIZE = (96, 128)
STRIDES = FCOSConfig().strides
FEATURE_SIZES = [(math.ceil(SIZE[0] / s), math.ceil(SIZE[1] / s)) for s in STRIDES]
LEVELS = RULES["official-improved"].levels(FEATURE_SIZES, SIZE)


def test_locations_outside_their_image_are_ignored():
    sizes = [(60, 70), (96, 97)]
    boxes = [
        torch.tensor([[10.0, 12, 50, 60], [0, 0, 128, 96]]),
        torch.tensor([[60.0, 20, 120, 80]]),
    ]  # both extend beyond their image
    gt = GroundTruth.pack(boxes, [torch.tensor([0, 2]), torch.tensor([1])])
    before = ops.assign_targets(gt, LEVELS, RULES["official-improved"])
    after = ignore_outside(before, LEVELS, torch.tensor(sizes))
    positive, quality = 0, 0.0
    for b, (height, width) in enumerate(sizes):
        p = 0
        for stride, (h, w) in zip(STRIDES, FEATURE_SIZES, strict=True):
            for y in range(h):
                for x in range(w):
                    outside = x * stride + stride // 2 >= width or y * stride + stride // 2 >= height
                    assert after.labels[b, p] == (IGNORED if outside else before.labels[b, p])
                    if after.labels[b, p] >= 0:
                        positive, quality = positive + 1, quality + before.centerness[b, p].item()
                    p += 1
    assert 0 < positive < before.num_positive
    assert after.num_positive == positive
    assert after.centerness_sum.item() == pytest.approx(quality)
    assert after.labels.dtype == before.labels.dtype
