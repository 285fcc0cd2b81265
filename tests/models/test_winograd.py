from __future__ import annotations

import pytest
import torch
from torch import nn

from fcos_fast.models import winograd
from fcos_fast.models.winograd import WinogradConv2d, use_winograd


@pytest.fixture(autouse=True)
def _however_small(monkeypatch):
    monkeypatch.setattr(winograd, "MIN_TILES", 1)


@pytest.mark.parametrize("at_once", [1, 5, 12, 1000])
@pytest.mark.parametrize("size", [(1, 4, 4), (3, 13, 18), (2, 16, 20), (2, 1, 1), (5, 6, 3)])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_the_convolution(monkeypatch, size, bias, at_once):
    monkeypatch.setattr(winograd, "TILES_AT_ONCE", at_once)
    conv = nn.Conv2d(5, 7, 3, padding=1, bias=bias).double()
    x = torch.randn(size[0], 5, *size[1:], dtype=torch.float64)
    for layout in (torch.contiguous_format, torch.channels_last):
        out = WinogradConv2d(conv)(x.to(memory_format=layout))
        torch.testing.assert_close(out, conv(x), rtol=1e-10, atol=1e-12)
        assert out.is_contiguous(memory_format=torch.channels_last)


def test_float32_loses_little():
    """Of the numbers' own size: a unit in the last place of float32 is 1.2e-7."""
    conv = nn.Conv2d(256, 128, 3, padding=1)
    x = torch.randn(2, 256, 20, 24)
    exact = conv.double()(x.double())
    out = WinogradConv2d(conv.float())(x)
    assert (out - exact).norm() / exact.norm() < 3e-6


def test_small_maps_take_the_ordinary_way(monkeypatch):
    conv = nn.Conv2d(4, 4, 3, padding=1)
    x = torch.randn(2, 4, 9, 9)
    for tiles, same in ((18, False), (19, True)):
        monkeypatch.setattr(winograd, "MIN_TILES", tiles)
        assert torch.equal(WinogradConv2d(conv)(x), conv(x)) is same


def test_only_what_gains_is_replaced():
    convs = {
        "plain": nn.Conv2d(128, 128, 3, padding=1),
        "strided": nn.Conv2d(128, 128, 3, 2, padding=1),
        "narrow": nn.Conv2d(128, 64, 3, padding=1),
        "1x1": nn.Conv2d(128, 128, 1),
        "5x5": nn.Conv2d(128, 128, 5, padding=1),
        "dilated": nn.Conv2d(128, 128, 3, padding=1, dilation=2),
        "unpadded": nn.Conv2d(128, 128, 3),
        "same": nn.Conv2d(128, 128, 3, padding="same"),
        "grouped": nn.Conv2d(128, 128, 3, padding=1, groups=2),
        "reflecting": nn.Conv2d(128, 128, 3, padding=1, padding_mode="reflect"),
    }
    module = nn.ModuleDict({"inner": nn.ModuleDict(convs)})
    keys = module.state_dict().keys()
    use_winograd(module)
    replaced = {name for name, layer in module["inner"].items() if isinstance(layer, WinogradConv2d)}
    assert replaced == {"plain"}
    assert module.state_dict().keys() == keys
