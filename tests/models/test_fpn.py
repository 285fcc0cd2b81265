from __future__ import annotations

from collections import OrderedDict

import pytest
import torch

from fcos_fast.models import build_backbone
from fcos_fast.models.fpn import FPN, BackboneWithFPN

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
