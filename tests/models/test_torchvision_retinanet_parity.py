"""The presets ``torchvision-retinanet`` and ``-v2`` against torchvision's own with the same random weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fcos_fast.models import RetinaNet, retinanet

torchvision = pytest.importorskip("torchvision", reason="torchvision's RetinaNet is the oracle")
detection = torchvision.models.detection

NUM_CLASSES = 7
SIZES = {"min_size": 112, "max_size": 160}
PRESETS = {
    "torchvision-retinanet": detection.retinanet_resnet50_fpn,
    "torchvision-retinanet-v2": detection.retinanet_resnet50_fpn_v2,
}


@pytest.fixture(params=PRESETS)
def pair(request, make_talkative) -> tuple[RetinaNet, detection.RetinaNet]:
    """The same detector twice, in float64, where rounding does not flip a ReLU or a sign of the L1 loss."""
    theirs = PRESETS[request.param](weights=None, weights_backbone=None, num_classes=NUM_CLASSES, **SIZES)
    make_talkative(theirs)
    for module in theirs.backbone.body.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 1.0, 3.0)
    ours = retinanet("resnet50", NUM_CLASSES, preset=request.param, **SIZES)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    ours.double()
    for buffer, values in (
        (ours.transform.mean, ours.config.image_mean),
        (ours.transform.std, ours.config.image_std),
    ):
        buffer.copy_(
            buffer.new_tensor(values)[:, None, None]
        )  # float32 rounded them; torchvision has the float64
    return ours, theirs.double()


@pytest.fixture
def batch():
    """Two sizes in one batch, boxes of several levels, one thinner than every anchor."""
    images = [torch.rand(3, *size, dtype=torch.float64) for size in [(112, 150), (63, 119)]]
    targets = [
        {
            "boxes": torch.tensor(
                [[10.0, 12, 50, 60], [0, 0, 150, 112], [40, 20, 120, 110], [12, 10, 52, 58], [3, 90, 130, 94]]
            ),
            "labels": torch.tensor([0, 2, 6, 1, 3]),
        },
        {
            "boxes": torch.tensor([[5.5, 8.0, 61.0, 60.0], [70.0, 2.0, 119.0, 61.0]]),
            "labels": torch.tensor([1, 5]),
        },
    ]
    return images, targets


def test_losses_and_gradients(pair, batch):
    ours, theirs = (model.train() for model in pair)
    losses, expected = ours(*batch), theirs(*batch)
    assert set(losses) == set(expected) == set(ours.LOSSES)
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-5, atol=0, msg=lambda m, n=name: f"{n}: {m}")
        assert value > 0.01

    sum(losses.values()).backward()
    sum(expected.values()).backward()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    for name, parameter in theirs.named_parameters():
        difference = (gradients[name] - parameter.grad).norm() / parameter.grad.norm()
        assert difference < 1e-5, f"{name}: relative difference {difference:.1e}"


def test_detections(pair, batch):
    ours, theirs = (model.eval() for model in pair)
    with torch.no_grad():
        expected = theirs(batch[0])
    for found, wanted in zip(ours(batch[0]), expected, strict=True):
        assert len(wanted["scores"]) > 20
        assert wanted["labels"].unique().numel() > 2
        assert found["labels"].equal(wanted["labels"])
        torch.testing.assert_close(found["scores"], wanted["scores"], rtol=1e-5, atol=0)
        torch.testing.assert_close(found["boxes"], wanted["boxes"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("pair", ["torchvision-retinanet"], indirect=True)
def test_images_without_boxes(pair, batch):
    images, (target, _) = batch
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    ours, theirs = (model.train() for model in pair)
    for targets in ([target, empty], [empty, empty]):
        losses, expected = ours(images, targets), theirs(images, targets)
        for name, value in expected.items():
            torch.testing.assert_close(losses[name], value, rtol=1e-5, atol=0)


@pytest.mark.parametrize("preset", PRESETS)
def test_full_size_state_dict_loads(preset):
    with torch.device("meta"):
        theirs = PRESETS[preset](weights=None, weights_backbone=None)
        ours = retinanet(preset=preset)
    assert ours.config.num_classes == 91
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("size", [(160, 224), (96, 32), (800, 1088)])
def test_anchors_are_bit_identical_to_torchvision(size):
    ours = retinanet("resnet18", 2, preset="torchvision-retinanet", fpn_channels=32, head_convs=0)
    sizes = ours.feature_sizes(size)
    generator = detection.retinanet._default_anchorgen()
    images = detection.image_list.ImageList(torch.zeros(1, 3, *size), [size])
    (expected,) = generator(images, [torch.zeros(1, 1, *s) for s in sizes])
    assert torch.cat(ours.anchors(size, sizes)).equal(expected)
