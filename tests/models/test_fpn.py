from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fcos_fast.assignment import RULES
from fcos_fast.models import build_backbone, fcos
from fcos_fast.models.fpn import FPN, BackboneWithFPN, ExtraLevels

CHANNELS = (16, 32, 64)


@pytest.mark.parametrize("p6_from", ["p5", "c5"])
@pytest.mark.parametrize("size", [(32, 48), (29, 35)])
def test_equals_torchvisions_with_its_weights(p6_from, size, torchvision):
    pyramid = torchvision.ops.feature_pyramid_network
    extra = pyramid.LastLevelP6P7(24 if p6_from == "p5" else CHANNELS[-1], 24)
    theirs = pyramid.FeaturePyramidNetwork(CHANNELS, 24, extra_blocks=extra)
    ours = FPN(CHANNELS, 24, p6_from)
    ours.load_state_dict(theirs.state_dict())
    maps, sides = [], size
    for channels in CHANNELS:
        maps.append(torch.randn(2, channels, *sides))
        sides = tuple(-(-side // 2) for side in sides)
    expected = theirs(OrderedDict(zip("345", maps, strict=True))).values()
    for p, q in zip(ours(maps), expected, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["resnet18", "darknet19"])
def test_level_sizes(name):
    with torch.device("meta"):
        body = build_backbone(name)
        pyramid = BackboneWithFPN(body, FPN(body.out_channels[1:]))(torch.empty(2, 3, 320, 480))
    assert [tuple(p.shape) for p in pyramid] == [
        (2, 256, 40, 60),
        (2, 256, 20, 30),
        (2, 256, 10, 15),
        (2, 256, 5, 8),
        (2, 256, 3, 4),
    ]


@pytest.mark.parametrize("relu", [False, True])
def test_norm_and_relu_after_the_convolutions(relu, torchvision):
    """Against torchvision's with a norm, and built by hand with a ReLU."""

    def norm(channels):
        return nn.Sequential(nn.GroupNorm(32, channels), *([nn.ReLU()] if relu else []))

    theirs = torchvision.ops.FeaturePyramidNetwork(CHANNELS, 64, norm_layer=norm)
    ours = FPN(CHANNELS, 64, num_extra=0, norm="group", relu=relu)
    state = {
        re.sub(r"(blocks\.\d)\.1\.0\.", r"\1.1.", key): value for key, value in theirs.state_dict().items()
    }
    ours.load_state_dict(state)
    maps = [torch.randn(2, channels, 16 // 2**i, 24 // 2**i) for i, channels in enumerate(CHANNELS)]
    expected = theirs(OrderedDict(zip("345", maps, strict=True))).values()
    for p, q in zip(ours(maps), expected, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)


@pytest.mark.parametrize("num_extra", [0, 1])
def test_fewer_levels(num_extra):
    fpn = FPN(CHANNELS, 32, num_extra=num_extra)
    maps = [torch.randn(1, channels, 16 // 2**i, 24 // 2**i) for i, channels in enumerate(CHANNELS)]
    levels = fpn(maps)
    assert [tuple(p.shape[2:]) for p in levels] == [(16, 24), (8, 12), (4, 6), (2, 3)][: 3 + num_extra]
    assert any("p7" in key for key in fpn.state_dict()) is False
    full = FPN(CHANNELS, 32)
    full.load_state_dict(fpn.state_dict(), strict=False)
    for p, q in zip(levels, full(maps)[: 3 + num_extra], strict=True):
        torch.testing.assert_close(p, q)


def test_the_max_pool_level_is_every_second_position_of_p5():
    fpn = FPN(CHANNELS, 32, "max_pool", num_extra=1)
    assert not any("extra" in key for key in fpn.state_dict())
    *_, p5, p6 = fpn(
        [torch.randn(1, channels, 20 // 2**i, 28 // 2**i) for i, channels in enumerate(CHANNELS)]
    )
    assert torch.equal(p6, p5[:, :, ::2, ::2])
    with pytest.raises(ValueError, match="adds only P6; use max_level 5 or 6"):
        FPN(CHANNELS, 32, "max_pool", num_extra=2)


def test_bilinear_upsampling_by_hand():
    """Between two positions of C5, P4 gets a quarter and three quarters of them (align_corners=False)."""
    fpn = FPN((2, 2), 2, num_extra=0, upsampling="bilinear")
    for block in (*fpn.inner_blocks, *fpn.layer_blocks):
        nn.init.zeros_(block[0].weight)
        for channel in range(2):
            block[0].weight.data[
                channel, channel, block[0].kernel_size[0] // 2, block[0].kernel_size[1] // 2
            ] = 1
    c5 = torch.tensor([0.0, 4.0]).expand(1, 2, 1, 2)
    p4, _ = fpn([torch.zeros(1, 2, 2, 4), c5])
    torch.testing.assert_close(p4[0, 0], torch.tensor([0.0, 1.0, 3.0, 4.0]).expand(2, 4))


@pytest.mark.parametrize(
    ("options", "strides"),
    [
        ({"max_level": 5, "rule": RULES["official"]}, (8, 16, 32)),
        ({"min_level": 2, "max_level": 5, "rule": RULES["official"]}, (4, 8, 16, 32)),
        ({"max_level": 6, "p6_from": "max_pool", "rule": RULES["official"]}, (8, 16, 32, 64)),
        ({"min_level": 2, "rule": RULES["official"]}, (4, 8, 16, 32, 64, 128)),
    ],
)
def test_a_detector_with_other_levels(options, strides):
    sizes = tuple(16.0 * 2**i for i in range(len(strides) - 1))
    options["rule"] = replace(options["rule"], sizes_of_interest=sizes)
    model = fcos("resnet18", 2, fpn_channels=32, head_channels=32, head_convs=1, min_size=None, **options)
    assert model.config.strides == strides
    target = {"boxes": torch.tensor([[8.0, 8, 40, 40]]), "labels": torch.tensor([1])}
    sum(model([torch.rand(3, 64, 96)], [target]).values()).backward()
    assert all(p.grad is not None for p in model.parameters())
    assert "boxes" in model.eval()([torch.rand(3, 64, 96)])[0]


def test_sizes_of_interest_must_match_the_levels():
    with pytest.raises(ValueError, match="rule has 4 sizes_of_interest; expected 2 for P3 to P5"):
        fcos("resnet18", 2, max_level=5)


@pytest.mark.parametrize("height", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_maps_of_one_column(dtype, height):
    """Gradients are finite and reproducible, independent of uninitialized memory."""
    blocks = ExtraLevels(32, 32).to(dtype)
    x = torch.randn(2, 32, height, 1, dtype=dtype)
    p6 = F.conv2d(x, blocks.p6.weight, blocks.p6.bias, 2, 1)
    expected = [p6, F.conv2d(F.relu(p6), blocks.p7.weight, blocks.p7.bias, 2, 1)]
    torch.testing.assert_close(blocks(x), expected)
    first = None
    for i in range(30):
        torch.full((20_000 * (i % 7 + 1),), torch.nan)  # freed at once
        grads = torch.autograd.grad(sum(level.sum() for level in blocks(x)), blocks.parameters())
        assert all(grad.isfinite().all() for grad in grads)
        first = first or grads
        assert all(map(torch.equal, grads, first))
