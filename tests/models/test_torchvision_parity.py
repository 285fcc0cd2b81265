"""The preset ``torchvision`` against torchvision's own FCOS with the same random weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.fcos import FCOS as TorchvisionFCOS
from torchvision.models.detection.fcos import fcos_resnet50_fpn
from torchvision.models.resnet import resnet50
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from fcos_fast.models import FCOS, fcos

NUM_CLASSES = 7
SIZES = {"min_size": 160, "max_size": 240}


def _torchvision(norm: str) -> TorchvisionFCOS:
    if norm == "batch":
        return fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=NUM_CLASSES, **SIZES)
    # What fcos_resnet50_fpn builds where it downloads pretrained weights.
    body = _resnet_fpn_extractor(
        resnet50(weights=None, norm_layer=FrozenBatchNorm2d), 3, [2, 3, 4], LastLevelP6P7(256, 256)
    )
    return TorchvisionFCOS(body, NUM_CLASSES, **SIZES)


@pytest.fixture(params=["batch", "frozen"])
def pair(request, make_talkative) -> tuple[FCOS, TorchvisionFCOS]:
    """The same detector twice: ours and torchvision's.

    With batch norm both do the same arithmetic in float32. A frozen norm is folded into its convolution here; in float64
    that rounding is too small to turn a ReLU on or off, which would change gradients by more than the tolerance.
    """
    norm = request.param
    theirs = _torchvision(norm)
    make_talkative(theirs)
    for module in theirs.backbone.body.modules():
        if isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d)):
            # Statistics near those of the activations, for these would grow from block to block without a norm.
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 1.0, 3.0)
    stages = {"batch": 5, "frozen": 3}[norm]
    ours = fcos("resnet50", NUM_CLASSES, preset="torchvision", norm=norm, trainable_stages=stages, **SIZES)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    dtype = {"batch": torch.float32, "frozen": torch.float64}[norm]
    return ours.to(dtype), theirs.to(dtype)


@pytest.fixture
def pictures(pair):
    """Three sizes in one batch, boxes of several levels; the second picture has none."""
    dtype = next(pair[0].parameters()).dtype
    images = [torch.rand(3, *size, dtype=dtype) for size in [(160, 210), (200, 150), (90, 170)]]
    targets = [
        {
            "boxes": torch.tensor(
                [
                    [10.0, 12.0, 50.0, 60.0],
                    [0.0, 0.0, 210.0, 160.0],
                    [60.0, 30.0, 160.0, 150.0],
                    [12.0, 10.0, 52.0, 58.0],
                ]
            ),
            "labels": torch.tensor([0, 2, 6, 1]),
        },
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
        {
            "boxes": torch.tensor([[5.5, 8.0, 61.0, 80.0], [100.0, 2.0, 169.0, 88.0]]),
            "labels": torch.tensor([1, 5]),
        },
    ]
    return images, targets


def test_losses_and_gradients(pair, pictures):
    ours, theirs = (model.train() for model in pair)
    losses, expected = ours(*pictures), theirs(*pictures)
    assert set(losses) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(
            losses[name], value.float(), rtol=1e-4, atol=0, msg=lambda m, n=name: f"{n}: {m}"
        )
        assert value > 0.01

    sum(losses.values()).backward()
    sum(expected.values()).backward()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    for name, parameter in theirs.named_parameters():
        if parameter.grad is None:
            assert gradients[name] is None, name
            continue
        difference = (gradients[name] - parameter.grad).norm() / parameter.grad.norm()
        assert difference < 1e-4, f"{name}: relative difference {difference:.1e}"


def test_detections(pair, pictures):
    ours, theirs = (model.eval() for model in pair)
    with torch.no_grad():
        expected = theirs(pictures[0])
    for found, wanted in zip(ours(pictures[0]), expected, strict=True):
        assert len(wanted["scores"]) > 20
        assert wanted["labels"].unique().numel() > 2
        assert found["labels"].equal(wanted["labels"])
        torch.testing.assert_close(found["scores"], wanted["scores"].float(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["boxes"], wanted["boxes"].float(), rtol=1e-4, atol=1e-2)


def test_a_batch_without_boxes(pair, pictures):
    images = pictures[0]
    targets = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)} for _ in images]
    ours, theirs = (model.train() for model in pair)
    losses, expected = ours(images, targets), theirs(images, targets)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value.float(), rtol=1e-4, atol=0)


def test_full_size_state_dict_loads():
    with torch.device("meta"):
        theirs = fcos_resnet50_fpn(weights=None, weights_backbone=None)
        ours = fcos(preset="torchvision")
    assert ours.config.num_classes == 91
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
