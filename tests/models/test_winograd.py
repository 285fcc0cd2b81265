from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from fcos_fast.models import winograd
from fcos_fast.models.winograd import WinogradConv2d, use_winograd


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
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_equals_the_convolution(monkeypatch, by_winograd, size, bias, at_once, dtype):
    monkeypatch.setattr(winograd, "TILES_AT_ONCE", at_once)
    tolerance = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 2e-4}
    conv = nn.Conv2d(5, 7, 3, padding=1, bias=bias).to(dtype)
    ours = by_winograd(conv)
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(size[0], 5, *size[1:], dtype=dtype).to(memory_format=memory_format).requires_grad_()
        out, expected = ours(x), conv(x)
        torch.testing.assert_close(out, expected, **tolerance)
        assert out.is_contiguous(memory_format=torch.channels_last)
        assert not ours(x).relu_().isnan().any()  # in-place is allowed

        upstream = torch.randn_like(expected)
        gradients = torch.autograd.grad(out, [x, *ours.parameters()], upstream)
        for ours_too, theirs in zip(
            gradients, torch.autograd.grad(expected, [x, *conv.parameters()], upstream), strict=True
        ):
            torch.testing.assert_close(ours_too, theirs, **tolerance)


def test_gradcheck(by_winograd):
    ours = by_winograd(nn.Conv2d(2, 3, 3, padding=1).double())
    x = torch.randn(2, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x, *parameters: ours(x), (x, *ours.parameters()))


def test_sliced_inputs_and_gradients(by_winograd):
    conv = nn.Conv2d(5, 7, 3, padding=1)
    ours = by_winograd(conv)
    x, upstream = torch.randn(3, 9, 12, 20), torch.randn(2, 14, 9, 10)
    x, upstream = x[1:, 2:7, 3:, 5:15].requires_grad_(), upstream[:, ::2]
    for found, expected in zip(
        *(torch.autograd.grad(c(x), [x, *c.parameters()], upstream) for c in (ours, conv)), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=2e-4)


def test_unneeded_gradients_are_not_computed(by_winograd, monkeypatch):
    ours = by_winograd(nn.Conv2d(5, 7, 3, padding=1))
    ours.weight.requires_grad_(False)
    monkeypatch.setattr(winograd, "_weight_gradient", None)
    x = torch.randn(1, 5, 9, 9, requires_grad=True)
    ours(x).sum().backward()
    assert ours.weight.grad is None
    assert ours.bias.grad is not None
    assert x.grad is not None

    out = ours(x.detach())
    monkeypatch.setattr(winograd, "convolve", None)
    out.sum().backward()


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


def test_a_second_derivative_raises(by_winograd):
    ours = by_winograd(nn.Conv2d(5, 7, 3, padding=1))
    x = torch.randn(1, 5, 9, 9, requires_grad=True)
    (grad,) = torch.autograd.grad(ours(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda x: x[:, :4], "to have 5 channels, but got 4"), (torch.Tensor.double, "should be the same")],
    ids=["channels", "dtype"],
)
def test_inputs_that_do_not_fit_raise_as_in_the_plain_convolution(by_winograd, change, message):
    with pytest.raises(RuntimeError, match=message):
        by_winograd(nn.Conv2d(5, 7, 3, padding=1))(change(torch.randn(1, 5, 9, 9)))


@pytest.mark.filterwarnings("ignore:.torch.jit.trace")
def test_exported_and_traced_modules_contain_the_plain_convolution(by_winograd):
    conv = nn.Conv2d(5, 7, 3, padding=1)
    ours = by_winograd(conv)
    x, larger = torch.randn(1, 5, 9, 9), torch.randn(2, 5, 14, 10)
    exported = torch.export.export(ours, (x,))
    assert {n.target for n in exported.graph.nodes if n.op == "call_function"} == {
        torch.ops.aten.conv2d.default
    }
    assert torch.equal(exported.module()(x), conv(x))
    assert torch.equal(torch.jit.trace(ours, (x,))(larger), conv(larger))


def test_small_maps_use_the_plain_convolution(monkeypatch, by_winograd):
    conv = nn.Conv2d(4, 4, 3, padding=1)
    ours = by_winograd(conv)
    x = torch.randn(2, 4, 9, 9)
    for tiles, same in ((18, False), (19, True)):
        monkeypatch.setattr(winograd, "MIN_TILES", tiles)
        assert torch.equal(ours(x), conv(x)) is same


def test_an_image_without_a_batch(by_winograd):
    conv = nn.Conv2d(4, 4, 3, padding=1)
    x = torch.randn(4, 4, 9)  # as high as it has channels
    assert torch.equal(by_winograd(conv)(x), conv(x))


def test_only_convolutions_that_gain_are_replaced():
    convs = {
        "plain": nn.Conv2d(128, 128, 3, padding=1),
        "strided": nn.Conv2d(128, 128, 3, 2, padding=1),
        "narrowest": nn.Conv2d(64, 64, 3, padding=1),
        "subclass": type("Other", (nn.Conv2d,), {})(128, 128, 3, padding=1),
        "narrow": nn.Conv2d(128, 63, 3, padding=1),
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
    assert replaced == {"plain", "narrowest"}
    assert module.state_dict().keys() == keys
