"""Class weights in the classification loss, against plain float64."""

from __future__ import annotations

import pytest
import torch

from fcos_fast.models import fcos, retinanet
from fcos_fast.models.class_weights import balanced

SMALL = {
    "backbone": "resnet18",
    "num_classes": 3,
    "fpn_channels": 32,
    "head_channels": 32,
    "head_convs": 1,
    "min_size": None,
}
WEIGHTS = (0.5, 3.0, 1.25)
IMAGES = [
    torch.rand(3, 64, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) for _ in range(2)
]
TARGETS = [
    {"boxes": torch.tensor([[4.0, 5, 40, 50], [50, 10, 90, 40]]), "labels": torch.tensor([0, 1])},
    {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
]


def build(function, **overrides):
    torch.manual_seed(0)
    return function(**(SMALL | overrides)).double().train()


def plain_focal_loss(logits: torch.Tensor, classes: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(B,) for logits (B, P, C) and classes (B, P), -1 background, -2 ignored; written out."""
    one_hot = torch.stack([(classes == c).double() for c in range(logits.shape[2])], dim=2)
    p = torch.sigmoid(logits)
    positive = -0.25 * (1 - p) ** 2 * torch.log(p) * one_hot
    negative = -0.75 * p**2 * torch.log(1 - p) * (1 - one_hot)
    loss = (positive + negative) * weights * (classes != -2)[:, :, None]
    return loss.sum(dim=(1, 2))


FCOS_CASES = [{}, {"normalizer": "image"}, {"normalizer": "positives"}, {"ignore_padding": True}]


@pytest.mark.parametrize("overrides", FCOS_CASES, ids=str)
def test_fcos(overrides):
    """The weighted loss and its gradients; box and centerness losses do not change."""
    model = build(fcos, class_weights=WEIGHTS, **overrides)
    unweighted = build(fcos, **overrides)
    batch, gt = model._pack(IMAGES, TARGETS)
    targets = model.assign(batch, gt)
    logits = torch.cat([x.flatten(2).transpose(1, 2) for x in model.network(batch.tensor)[0]], dim=1)
    sums = plain_focal_loss(logits, targets.labels, torch.tensor(WEIGHTS, dtype=torch.float64))
    positives = (targets.labels >= 0).sum(dim=1)
    assert positives[0] > 0
    by_image = (sums / positives.clamp(min=1)).mean()
    expected = by_image if overrides.get("normalizer") == "image" else sums.sum() / positives.sum()
    losses, before = model(IMAGES, TARGETS), unweighted(IMAGES, TARGETS)
    torch.testing.assert_close(losses["classification"], expected, rtol=1e-6, atol=0)
    assert abs(losses["classification"] - before["classification"]) > 0.01
    for name in ("bbox_regression", "bbox_ctrness"):
        assert torch.equal(losses[name], before[name])
    parameters = [p for p in model.parameters() if p.requires_grad]
    boxes = losses["bbox_regression"] + losses["bbox_ctrness"]
    wanted = torch.autograd.grad(expected + boxes, parameters, allow_unused=True)
    for a, b in zip(
        torch.autograd.grad(sum(model(IMAGES, TARGETS).values()), parameters), wanted, strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("overrides", [{}, {"normalizer": "image"}], ids=str)
def test_retinanet(overrides):
    model = build(retinanet, class_weights=WEIGHTS, **overrides)
    batch, gt = model._pack(IMAGES, TARGETS)
    targets = model.assign(batch, gt)
    per_location, maps = model.anchors.per_location, model.network(batch.tensor)[0]
    logits = [x.unflatten(1, (per_location, 3)).permute(0, 3, 4, 1, 2).reshape(2, -1, 3) for x in maps]
    sums = plain_focal_loss(torch.cat(logits, 1), targets.labels, torch.tensor(WEIGHTS, dtype=torch.float64))
    positives = (targets.labels >= 0).sum(dim=1)
    by_image = (sums / positives.clamp(min=1)).mean()
    expected = by_image if overrides else sums.sum() / positives.sum()
    torch.testing.assert_close(model(IMAGES, TARGETS)["classification"], expected, rtol=1e-6, atol=0)


def test_focal_star():
    options = {"classification_loss": "focal_star", "focal_gamma": 2.0}
    ones, twos = (build(retinanet, class_weights=(w,) * 3, **options) for w in (1.0, 2.0))
    plain = build(retinanet, **options)(IMAGES, TARGETS)["classification"]
    torch.testing.assert_close(ones(IMAGES, TARGETS)["classification"], plain)
    torch.testing.assert_close(twos(IMAGES, TARGETS)["classification"], 2 * plain)


def test_bfloat16_autocast():
    model = build(fcos, class_weights=WEIGHTS).float()
    images = [image.float() for image in IMAGES]
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(images, TARGETS)["classification"]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, model(images, TARGETS)["classification"], rtol=0.05, atol=0)


def test_weights_are_not_saved():
    assert build(fcos, class_weights=WEIGHTS).state_dict().keys() == build(fcos).state_dict().keys()


def test_balanced():
    """Inverse to the counts; the mean over the boxes is 1."""
    weights = balanced([60, 30, 0, 10])
    assert weights == (0.555556, 1.111111, 1.0, 3.333333)
    assert 60 * weights[0] + 30 * weights[1] + 10 * weights[3] == pytest.approx(100, abs=1e-3)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1.0, 2.0), "class_weights has 2 values for 3 classes; give one per class"),
        ("balanced", "class_weights='balanced' depends on the training split"),
        ((1.0, 0.0, 1.0), r"class_weights=\(1.0, 0.0, 1.0\); expected positive numbers, one per class"),
        ("even", "class_weights='even'|value of class_weights"),
    ],
)
def test_invalid_weights(weights, message):
    with pytest.raises(ValueError, match=message):
        build(fcos, class_weights=weights)
