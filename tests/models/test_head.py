from __future__ import annotations

import pytest
import torch
from torch import nn

from fcos_fast.models.head import FCOSHead, bounded_exp

SIZES = [(6, 8), (3, 4), (2, 2), (1, 1), (1, 1)]


def _features(channels: int = 32) -> list[torch.Tensor]:
    return [torch.randn(2, channels, *size) for size in SIZES]


@pytest.mark.parametrize("centerness_on", ["regression", "classification"])
@pytest.mark.parametrize("norm", ["group", "none"])
@pytest.mark.parametrize("num_convs", [0, 1, 4])
def test_outputs_per_level(centerness_on, norm, num_convs):
    head = FCOSHead(32, 7, 5, 64, num_convs, norm, centerness_on=centerness_on)
    outputs = head(_features())
    for maps, channels in zip(outputs, (7, 4, 1), strict=True):
        assert [tuple(x.shape) for x in maps] == [(2, channels, *size) for size in SIZES]
    towers = [head.classification_head.conv, head.regression_head.conv]
    assert all(sum(isinstance(m, nn.Conv2d) for m in tower) == num_convs for tower in towers)
    assert any(isinstance(m, nn.GroupNorm) for m in head.modules()) == (norm == "group" and num_convs > 0)


def test_key_names_equal_torchvisions(torchvision):
    ours = FCOSHead(32, 7, 5, 32, scale="none").state_dict()
    theirs = torchvision.models.detection.fcos.FCOSHead(32, 1, 7).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


def test_centerness_on_either_tower():
    head = FCOSHead(32, 7, 5, 32, centerness_on="classification")
    sum(x.sum() for x in head(_features()).centerness).backward()
    assert head.classification_head.conv[0].weight.grad is not None
    assert head.regression_head.conv[0].weight.grad is None


def test_classes_start_at_the_prior():
    head = FCOSHead(256, 20, 5, prior=0.01)
    probability = torch.cat([x.flatten() for x in head(_features(256)).cls_logits]).sigmoid()
    assert probability.mean().item() == pytest.approx(0.01, rel=0.1)


def test_convolutions_start_with_deviation_001():
    head = FCOSHead(64, 20, 5, 64)
    for module in head.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 5000:
            assert module.weight.std().item() == pytest.approx(0.01, rel=0.1)


def test_overflow_at_a_background_location_keeps_gradients_finite():
    raw = torch.full((1, 4), 200.0, requires_grad=True)
    distances = bounded_exp(raw)
    (distances * torch.tensor([1.0, 0, 0, 0])).sum().backward()
    assert distances.isfinite().all()
    assert raw.grad.isfinite().all()


@pytest.mark.parametrize(("activation", "function"), [("relu", torch.relu), ("exp", torch.exp)])
def test_each_level_has_its_scale(activation, function):
    head = FCOSHead(32, 7, 5, 32, 0, activation=activation)
    assert [name for name, _ in head.named_parameters() if "scale" in name] == ["regression_head.scales"]
    with torch.no_grad():
        head.regression_head.scales.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]))
    features = _features()
    for level, (x, distances) in enumerate(zip(features, head(features).box_regression, strict=True)):
        torch.testing.assert_close(distances, function((level + 1) * head.regression_head.bbox_reg(x)))


def test_exp_of_a_scale_and_towers_without_bias():
    head = FCOSHead(32, 7, 5, 32, 1, activation="exp", scale="exp", bias=False)
    regression = head.regression_head
    assert regression.conv[0].bias is head.classification_head.conv[0].bias is None
    with torch.no_grad():
        regression.scales.copy_(torch.tensor([-2.0, -1.0, 0.0, 1.0, 2.0]))
    features = _features()
    for scale, x, distances in zip(regression.scales, features, head(features).box_regression, strict=True):
        raw = regression.bbox_reg(regression.conv(x))
        torch.testing.assert_close(distances, torch.exp(raw * torch.exp(scale)))


def test_activations_stay_bfloat16_under_autocast():
    head = FCOSHead(32, 7, 5, 32)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = head(_features())
    assert {x.dtype for maps in outputs for x in maps} == {torch.bfloat16}


def test_channels_last_stays_channels_last():
    head = FCOSHead(32, 7, 5, 32).to(memory_format=torch.channels_last)
    outputs = head([x.contiguous(memory_format=torch.channels_last) for x in _features()])
    assert all(x.is_contiguous(memory_format=torch.channels_last) for maps in outputs for x in maps)
