"""The backbone of Faster R-CNN against torchvision's, and inside torchvision's detector."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import nn

from fcos_fast.models import FasterRCNNBackbone, IntermediateLayerGetter, build_backbone


@pytest.fixture
def pair(torchvision):
    """Torchvision's backbone with random norms, and ours with its weights."""
    torch.manual_seed(0)
    theirs = torchvision.models.detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet50", weights=None, trainable_layers=3
    )
    for module in theirs.modules():
        if isinstance(module, torchvision.ops.FrozenBatchNorm2d):
            module.weight.uniform_(0.1, 0.5)
            module.bias.normal_(std=0.1)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 1.5)
    ours = FasterRCNNBackbone("resnet50")
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    return theirs, ours


def test_maps_equal_torchvisions(pair):
    theirs, ours = pair
    assert ours.out_channels == theirs.out_channels == 256
    x = torch.randn(2, 3, 96, 160)
    maps, expected = ours(x), theirs(x)
    assert list(maps) == list(expected) == ["0", "1", "2", "3", "pool"]
    assert [96 // m.shape[2] for m in maps.values()] == [4, 8, 16, 32, 48]  # 64, rounded up
    for name, m in maps.items():
        torch.testing.assert_close(
            m, expected[name], rtol=1e-4, atol=1e-4 * expected[name].abs().max().item()
        )


def test_the_same_parameters_train(pair):
    theirs, ours = pair
    assert {n for n, p in ours.named_parameters() if p.requires_grad} == {
        n for n, p in theirs.named_parameters() if p.requires_grad
    }


def test_faster_rcnn_trains_and_detects_as_with_torchvisions(pair, torchvision):
    images = [torch.rand(3, 96, 128), torch.rand(3, 80, 96)]
    targets = [
        {"boxes": torch.tensor([[10.0, 10, 60, 70]]), "labels": torch.tensor([1])},
        {"boxes": torch.tensor([[5.0, 20, 50, 60], [30, 10, 90, 70]]), "labels": torch.tensor([2, 1])},
    ]
    theirs, ours = (
        torchvision.models.detection.FasterRCNN(
            backbone, num_classes=3, min_size=96, max_size=160, box_score_thresh=0
        )
        for backbone in pair
    )
    ours.load_state_dict(theirs.state_dict())
    losses = []
    for model in (theirs, ours):
        torch.manual_seed(1)  # proposals are sampled
        losses.append(model.train()(images, targets))
        sum(losses[-1].values()).backward()
    assert losses[0].keys() == losses[1].keys()
    for name, loss in losses[0].items():
        torch.testing.assert_close(losses[1][name], loss, rtol=1e-3, atol=1e-5)
    for name, parameter in ours.backbone.named_parameters():
        assert not parameter.requires_grad or parameter.grad.isfinite().all(), name
    before = ours.backbone.body.layer4[0].conv1.weight.clone()
    torch.optim.SGD([p for p in ours.parameters() if p.requires_grad], lr=0.01).step()
    assert not torch.equal(ours.backbone.body.layer4[0].conv1.weight, before)
    found = ours.eval()(images)
    assert len(found) == 2
    assert set(found[0]) == {"boxes", "labels", "scores"}


@pytest.mark.parametrize("name", ["resnet18", "resnext50_32x4d", "mobilenet_v2"])
def test_other_backbones_have_the_same_keys_and_strides(name):
    with torch.device("meta"):
        maps = FasterRCNNBackbone(name, norm="batch", channels=64)(torch.zeros(1, 3, 128, 192))
    assert {key: tuple(m.shape) for key, m in maps.items()} == {
        "0": (1, 64, 32, 48),
        "1": (1, 64, 16, 24),
        "2": (1, 64, 8, 12),
        "3": (1, 64, 4, 6),
        "pool": (1, 64, 2, 3),
    }


@pytest.mark.parametrize("layers", [{"layer1": "a", "layer3": "b"}, {"layer4": "0"}, {"maxpool": "x"}])
def test_the_getter_equals_torchvisions(layers, torchvision):
    model = torchvision.models.resnet18(weights=None).eval()
    theirs = torchvision.models._utils.IntermediateLayerGetter(model, layers)
    ours = IntermediateLayerGetter(model, layers)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(1, 3, 64, 64)
    found, expected = ours(x), theirs(x)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_getter_with_our_resnet():
    backbone = build_backbone("resnet18").eval()
    x = torch.randn(1, 3, 64, 64)
    found = IntermediateLayerGetter(backbone, {"layer1": "c2", "layer3": "c4"})(x)
    maps = backbone(x)
    assert isinstance(found, OrderedDict)
    torch.testing.assert_close(found["c2"], maps[0])
    torch.testing.assert_close(found["c4"], maps[2])


def test_the_getter_rejects_unknown_layers():
    with pytest.raises(ValueError, match="unknown layer 'layer5'; did you mean 'layer"):
        IntermediateLayerGetter(build_backbone("resnet18"), {"layer5": "x"})
    assert IntermediateLayerGetter(nn.Sequential(nn.ReLU()), {})(torch.ones(1)) == {}
