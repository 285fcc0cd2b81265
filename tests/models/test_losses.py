from __future__ import annotations

import math

import pytest
import torch

from fcos_fast import ops
from fcos_fast.assignment import IGNORED, RULES, GroundTruth
from fcos_fast.models import STRIDES
from fcos_fast.models.losses import detection_loss, ignore_outside

SIZE = (96, 128)
FEATURE_SIZES = [(math.ceil(SIZE[0] / s), math.ceil(SIZE[1] / s)) for s in STRIDES]
LEVELS = RULES["official-improved"].levels(FEATURE_SIZES, SIZE)
BOXES = [torch.tensor([[10.0, 12, 50, 60], [0, 0, 128, 96]]), torch.tensor([[30.0, 30, 64, 64]])]
LABELS = [torch.tensor([0, 2]), torch.tensor([1])]


def _targets(boxes=BOXES, labels=LABELS):
    return ops.assign_targets(GroundTruth.pack(boxes, labels), LEVELS, RULES["official-improved"])


@pytest.fixture
def outputs():
    cls_logits = [torch.randn(2, 3, *size, requires_grad=True) for size in FEATURE_SIZES]
    box_regression = [(3 * torch.rand(2, 4, *size)).requires_grad_() for size in FEATURE_SIZES]
    centerness = [torch.randn(2, 1, *size, requires_grad=True) for size in FEATURE_SIZES]
    return cls_logits, box_regression, centerness


def _giou_loss(p, t, smooth):
    """Of two ltrb around one location, smoothed as the official code does."""
    intersection = (min(p[0], t[0]) + min(p[2], t[2])) * (min(p[1], t[1]) + min(p[3], t[3]))
    union = (p[0] + p[2]) * (p[1] + p[3]) + (t[0] + t[2]) * (t[1] + t[3]) - intersection
    enclosing = (max(p[0], t[0]) + max(p[2], t[2])) * (max(p[1], t[1]) + max(p[3], t[3]))
    return 1 - (intersection + smooth) / (union + smooth) + (enclosing - union) / enclosing


def _expected(outputs, targets, units, smooth, weighted):
    """The losses by their definitions, one location at a time."""
    sums = {"classification": 0.0, "bbox_regression": 0.0, "bbox_ctrness": 0.0}
    num_positive, weights = 0, 0.0
    for b in range(2):
        p = 0
        for level, (h, w) in enumerate(FEATURE_SIZES):
            for y in range(h):
                for x in range(w):
                    label = int(targets.labels[b, p])
                    for c in range(3):
                        logit = outputs[0][level][b, c, y, x].item()
                        probability = 1 / (1 + math.exp(-(logit if c == label else -logit)))
                        alpha = 0.25 if c == label else 0.75
                        if label != IGNORED:
                            sums["classification"] -= alpha * (1 - probability) ** 2 * math.log(probability)
                    if label >= 0:
                        left, top, right, bottom = targets.ltrb[b, p].tolist()
                        quality = math.sqrt(
                            min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom)
                        )
                        weight = quality if weighted else 1.0
                        wanted = [d / units[level] for d in (left, top, right, bottom)]
                        predicted = outputs[1][level][b, :, y, x].tolist()
                        sums["bbox_regression"] += weight * _giou_loss(predicted, wanted, smooth)
                        predicted = 1 / (1 + math.exp(-outputs[2][level][b, 0, y, x].item()))
                        sums["bbox_ctrness"] -= quality * math.log(predicted)
                        sums["bbox_ctrness"] -= (1 - quality) * math.log(1 - predicted)
                        num_positive, weights = num_positive + 1, weights + weight
                    p += 1
    assert num_positive > 10
    totals = {"classification": num_positive, "bbox_regression": weights, "bbox_ctrness": num_positive}
    return {name: value / totals[name] for name, value in sums.items()}


@pytest.mark.parametrize(("weighted", "ignored"), [(False, True), (True, False)])
@pytest.mark.parametrize(("units", "smooth"), [(STRIDES, 1.0), ((1,) * 5, 0.0)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_definitions(outputs, units, smooth, weighted, ignored, memory_format):
    targets = _targets()
    if ignored:
        targets = ignore_outside(targets, LEVELS, torch.tensor([[96, 128], [60, 70]]))
    losses = detection_loss(
        *([x.contiguous(memory_format=memory_format) for x in maps] for maps in outputs),
        targets,
        units=units,
        box_loss_smooth=smooth,
        centerness_weighted=weighted,
    )
    expected = _expected(outputs, targets, units, smooth, weighted)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, rel=1e-4), name


@pytest.mark.parametrize("kind", ["iou", "linear_iou", "giou", "diou", "ciou"])
@pytest.mark.parametrize("weighted", [False, True])
def test_nothing_to_find_is_finite_and_has_a_graph(outputs, kind, weighted):
    targets = _targets([torch.zeros(0, 4)] * 2, [torch.zeros(0, dtype=torch.int64)] * 2)
    with torch.no_grad():  # what a location outside every box says is nobody's business
        outputs[1][0].fill_(torch.inf)
    losses = detection_loss(*outputs, targets, units=STRIDES, box_loss=kind, centerness_weighted=weighted)
    assert losses["classification"] > 0
    assert losses["bbox_regression"] == losses["bbox_ctrness"] == 0
    sum(losses.values()).backward()
    for maps in outputs:
        assert all(x.grad is not None and x.grad.isfinite().all() for x in maps)


def test_locations_outside_their_image_are_ignored():
    sizes = [(60, 70), (96, 97)]
    boxes = [BOXES[0], torch.tensor([[60.0, 20, 120, 80]])]  # both reach beyond their image
    before = _targets(boxes)
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


def test_half_precision_outputs_lose_only_their_own_rounding(outputs):
    targets = _targets()
    exact = detection_loss(*outputs, targets, units=STRIDES)
    rounded = detection_loss(*([x.bfloat16() for x in maps] for maps in outputs), targets, units=STRIDES)
    for name, value in exact.items():
        assert rounded[name].dtype == torch.float32
        assert rounded[name].item() == pytest.approx(value.item(), rel=1e-2)
