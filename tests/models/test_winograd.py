from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fcos_fast.models import winograd
from fcos_fast.models.winograd import KeptWinogradConv2d, WinogradConv2d, use_winograd


@pytest.fixture(autouse=True)
def _however_small(monkeypatch):
    monkeypatch.setattr(winograd, "MIN_TILES", 1)


@pytest.fixture
def by_winograd(monkeypatch):
    """A copy of a convolution with Winograd's method, for any number of channels."""
    monkeypatch.setattr(winograd, "MIN_CHANNELS", 1)

    def make(conv: nn.Conv2d) -> WinogradConv2d:
        conv = copy.deepcopy(conv)
        assert use_winograd(conv) == [(conv, nn.Conv2d)]
        return conv

    return make


@pytest.mark.parametrize("at_once", [1, 5, 12, 1000])
@pytest.mark.parametrize("size", [(1, 4, 4), (3, 13, 18), (2, 16, 20), (2, 1, 1), (5, 6, 3)])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_the_convolution(monkeypatch, by_winograd, size, bias, at_once):
    monkeypatch.setattr(winograd, "TILES_AT_ONCE", at_once)
    conv = nn.Conv2d(5, 7, 3, padding=1, bias=bias).double()
    ours = by_winograd(conv)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = (
            torch.randn(size[0], 5, *size[1:], dtype=torch.float64)
            .to(memory_format=memory_format)
            .requires_grad_()
        )
        out, expected = ours(x), conv(x)
        torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert not ours(x).relu_().isnan().any()  # in-place is allowed

        upstream = torch.randn_like(expected)
        gradients = torch.autograd.grad(out, [x, *ours.parameters()], upstream)
        for ours_too, theirs in zip(
            gradients, torch.autograd.grad(expected, [x, *conv.parameters()], upstream), strict=True
        ):
            torch.testing.assert_close(ours_too, theirs, rtol=1e-10, atol=1e-12)


def test_unneeded_gradients_are_not_computed(by_winograd, monkeypatch):
    ours = by_winograd(nn.Conv2d(5, 7, 3, padding=1))
    ours.weight.requires_grad_(False)
    monkeypatch.setattr(winograd, "_weight_gradient", None)
    x = torch.randn(1, 5, 9, 9, requires_grad=True)
    ours(x).sum().backward()
    assert ours.weight.grad is None
    assert ours.bias.grad is not None
    assert x.grad is not None


def test_autocast_and_other_dtypes_use_the_plain_convolution(by_winograd):
    conv = nn.Conv2d(5, 7, 3, padding=1)
    ours = by_winograd(conv)
    x = torch.randn(1, 5, 9, 9)
    out = ours(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(x), conv(x))
        out.sum().backward()  # backward of a forward pass outside of autocast
    conv(x).sum().backward()
    torch.testing.assert_close(ours.weight.grad, conv.weight.grad, rtol=1e-3, atol=1e-3)
    assert torch.equal(ours.bfloat16()(x.bfloat16()), conv.bfloat16()(x.bfloat16()))


def test_float32_error(by_winograd):
    """Relative to the values; a unit in the last place of float32 is 1.2e-7."""
    conv = nn.Conv2d(256, 128, 3, padding=1)
    x = torch.randn(2, 256, 20, 24, requires_grad=True)
    ours = by_winograd(conv)
    conv.double()
    for run in (lambda c, x: [c(x)], lambda c, x: torch.autograd.grad(c(x).square().sum(), [x, c.weight])):
        for out, exact in zip(run(ours, x), run(conv, x.double()), strict=True):
            assert (out - exact).norm() / exact.norm() < 5e-6


@pytest.fixture
def keeping(monkeypatch):
    """A convolution that keeps its transformed weight."""
    monkeypatch.setattr(winograd, "MIN_CHANNELS", 1)
    conv = nn.Conv2d(5, 7, 3, padding=1)
    use_winograd(conv, keep=True)
    assert type(conv) is KeptWinogradConv2d
    return conv


def by_torch(conv: nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
    return nn.functional.conv2d(x, conv.weight, conv.bias, padding=1)


@torch.no_grad()
def _becomes(conv: nn.Conv2d, change: str) -> nn.Conv2d:
    other = {name: torch.randn_like(value) for name, value in conv.state_dict().items()}
    if change == "in place":
        conv.weight.mul_(2)
    elif change == "loaded":
        conv.load_state_dict(other)
    elif change == "assigned":
        conv.load_state_dict(other, assign=True)
    elif change == "parameter":
        version, conv.weight = conv.weight._version, nn.Parameter(other["weight"])
        while conv.weight._version < version:  # another object with the same version
            conv.weight.mul_(1)
    elif change == "rounded":
        conv.bfloat16().float()
    elif change == "double":
        conv.double()
    elif change == "copied after a change":
        conv.weight.mul_(2)
        conv = copy.deepcopy(conv)
    elif change == "copied and changed":
        conv = copy.deepcopy(conv)
        conv.weight.mul_(2)
    return conv


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(
    "change",
    [
        *("in place", "loaded", "assigned", "parameter", "rounded", "double"),
        *("copied after a change", "copied and changed"),
    ],
)
def test_the_kept_transform_follows_the_weight(keeping, change, mode):
    x = torch.randn(1, 5, 9, 9)
    with mode():
        torch.testing.assert_close(keeping(x), by_torch(keeping, x), rtol=1e-4, atol=1e-4)
    changed = _becomes(keeping, change)
    assert type(changed) is KeptWinogradConv2d
    x = x.to(changed.weight.dtype)
    tolerance = 1e-10 if change == "double" else 1e-4
    with mode():
        torch.testing.assert_close(changed(x), by_torch(changed, x), rtol=tolerance, atol=tolerance)


def test_the_weight_is_transformed_once_and_not_saved(keeping, monkeypatch):
    calls = []
    transform = winograd._transform_weight
    monkeypatch.setattr(winograd, "_transform_weight", lambda weight: calls.append(1) or transform(weight))
    keys = nn.Conv2d(5, 7, 3).state_dict().keys()
    with torch.inference_mode():
        outputs = [keeping(torch.ones(1, 5, 9, 9)) for _ in range(3)]
    assert len(calls) == 1
    assert torch.equal(outputs[0], outputs[2])
    assert keeping.state_dict().keys() == keys
    assert len(list(keeping.buffers())) == 0
    assert "_kept" not in copy.deepcopy(keeping).__dict__
    with torch.no_grad():
        keeping(torch.ones(1, 5, 9, 9))  # kept in inference mode, used outside of it
    assert len(calls) == 1


def test_gradients_with_a_kept_transform(keeping):
    keeping.requires_grad_(False)
    x = torch.randn(1, 5, 9, 9, requires_grad=True)
    with torch.inference_mode():
        keeping(x)
    (ours,) = torch.autograd.grad(keeping(x).square().sum(), x)
    (theirs,) = torch.autograd.grad(by_torch(keeping, x).square().sum(), x)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_weights_made_in_inference_mode_are_not_kept(keeping):
    x = torch.randn(1, 5, 9, 9)
    with torch.inference_mode():
        keeping.weight = nn.Parameter(torch.randn(7, 5, 3, 3), requires_grad=False)
        for _ in range(2):
            torch.testing.assert_close(keeping(x), by_torch(keeping, x), rtol=1e-4, atol=1e-4)
            keeping.weight.mul_(2)


def test_small_maps_use_the_plain_convolution(monkeypatch, by_winograd):
    conv = nn.Conv2d(4, 4, 3, padding=1)
    ours = by_winograd(conv)
    x = torch.randn(2, 4, 9, 9)
    for tiles, same in ((18, False), (19, True)):
        monkeypatch.setattr(winograd, "MIN_TILES", tiles)
        assert torch.equal(ours(x), conv(x)) is same


def test_only_convolutions_that_gain_are_replaced():
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
