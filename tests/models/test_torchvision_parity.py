"""The preset ``torchvision`` against torchvision's own FCOS with the same random weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fcos_fast.models import FCOS, fcos

torchvision = pytest.importorskip("torchvision")
torchvision_fcos = torchvision.models.detection.fcos

NUM_CLASSES = 7
SIZES = {"min_size": 112, "max_size": 160}


def _torchvision(norm: str) -> torchvision_fcos.FCOS:
    if norm == "batch":
        return torchvision_fcos.fcos_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=NUM_CLASSES, **SIZES
        )
    # What fcos_resnet50_fpn builds with pretrained weights.
    body = torchvision.models.detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet50",
        weights=None,
        trainable_layers=3,
        returned_layers=[2, 3, 4],
        extra_blocks=torchvision.ops.feature_pyramid_network.LastLevelP6P7(256, 256),
    )
    return torchvision_fcos.FCOS(body, NUM_CLASSES, **SIZES)


@pytest.fixture(params=["batch", "frozen"])
def pair(request, make_talkative) -> tuple[FCOS, torchvision_fcos.FCOS]:
    """The same detector twice: ours and torchvision's.

    In float64, where rounding is too small to switch a ReLU, which would change gradients beyond the tolerance: a
    frozen norm is folded into its convolution here, and what float32 rounds depends on the number of threads.
    """
    norm = request.param
    theirs = _torchvision(norm)
    make_talkative(theirs)
    for module in theirs.backbone.body.modules():
        if isinstance(module, (nn.BatchNorm2d, torchvision.ops.FrozenBatchNorm2d)):
            # Near the statistics of the activations, which otherwise grow from block to block.
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 1.0, 3.0)
    stages = {"batch": 5, "frozen": 3}[norm]
    ours = fcos("resnet50", NUM_CLASSES, preset="torchvision", norm=norm, trainable_stages=stages, **SIZES)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours.double(), theirs.double()


@pytest.fixture
def batch(pair):
    """Three sizes in one batch, boxes of several levels; the second image has no boxes."""
    dtype = next(pair[0].parameters()).dtype
    images = [torch.rand(3, *size, dtype=dtype) for size in [(112, 150), (140, 105), (63, 119)]]
    targets = [
        {
            "boxes": torch.tensor(
                [[10.0, 12, 50, 60], [0, 0, 150, 112], [40, 20, 120, 110], [12, 10, 52, 58]]
            ),
            "labels": torch.tensor([0, 2, 6, 1]),
        },
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
        {
            "boxes": torch.tensor([[5.5, 8.0, 61.0, 60.0], [70.0, 2.0, 119.0, 61.0]]),
            "labels": torch.tensor([1, 5]),
        },
    ]
    # float64 convolutions are slow
    return (images, targets) if dtype == torch.float32 else (images[1:], targets[1:])


def test_losses_and_gradients(pair, batch):
    ours, theirs = (model.train() for model in pair)
    losses, expected = ours(*batch), theirs(*batch)
    assert set(losses) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=0, msg=lambda m, n=name: f"{n}: {m}")
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


def test_detections(pair, batch):
    ours, theirs = (model.eval() for model in pair)
    with torch.no_grad():
        expected = theirs(batch[0])
    for found, wanted in zip(ours(batch[0]), expected, strict=True):
        assert len(wanted["scores"]) > 20
        assert wanted["labels"].unique().numel() > 2
        assert found["labels"].equal(wanted["labels"])
        torch.testing.assert_close(found["scores"], wanted["scores"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found["boxes"], wanted["boxes"], rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("pair", ["batch"], indirect=True)
def test_a_batch_without_boxes(pair, batch):
    images = batch[0]
    targets = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)} for _ in images]
    ours, theirs = (model.train() for model in pair)
    losses, expected = ours(images, targets), theirs(images, targets)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-4, atol=0)


def test_full_size_state_dict_loads():
    with torch.device("meta"):
        theirs = torchvision_fcos.fcos_resnet50_fpn(weights=None, weights_backbone=None)
        ours = fcos(preset="torchvision")
    assert ours.config.num_classes == 91
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
