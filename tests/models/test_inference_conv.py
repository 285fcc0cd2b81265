import copy

import pytest
import torch
from torch import nn

import fcos_fast.models.inference_conv
from fcos_fast.models import winograd
from fcos_fast.models.inference_conv import KEPT_WEIGHTS, InferenceConv2d, use_inference_convolutions

CONVOLUTIONS = {
    "3x3": nn.Conv2d(6, 8, 3, padding=1),
    "1x1": nn.Conv2d(6, 8, 1, bias=False),
    "strided": nn.Conv2d(6, 8, 3, stride=2, padding=1),
    "7x7": nn.Conv2d(3, 8, 7, stride=2, padding=3),
    "grouped": nn.Conv2d(6, 8, 3, padding=1, groups=2),
    "depthwise": nn.Conv2d(6, 6, 3, padding=1, groups=6),
    "dilated": nn.Conv2d(6, 8, 3, padding=2, dilation=2),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("size", [(1, 40, 56), (3, 5, 4), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_equals_the_convolution(name, size, dtype):
    conv = copy.deepcopy(CONVOLUTIONS[name]).to(dtype).requires_grad_(False)
    ours = inference_conv(copy.deepcopy(conv))
    batch, height, width = size
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(batch, conv.in_channels, height, width).to(dtype, memory_format=memory_format)
        found = ours(x)
        tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(found, conv(x), rtol=tolerance, atol=tolerance)
        assert dtype == torch.float64 or found.is_contiguous(memory_format=torch.channels_last)
        assert not found.relu_().isnan().any()  # in-place is allowed


def test_weights_are_kept_for_the_latest_shapes_only():
    conv = nn.Conv2d(4, 4, 3).requires_grad_(False)
    ours = inference_conv(copy.deepcopy(conv))
    inputs = [torch.randn(1, 4, 4 + i, 8) for i in range(KEPT_WEIGHTS + 2)]
    for x in [*inputs, inputs[2], inputs[0]]:
        torch.testing.assert_close(ours(x), conv(x), rtol=1e-5, atol=1e-5)
    assert list(ours._kept) == [x.shape for x in [*inputs[4:], inputs[2], inputs[0]]]


def test_a_compiled_copy_computes_the_same():
    conv = nn.Conv2d(4, 4, 3).requires_grad_(False)
    ours = inference_conv(copy.deepcopy(conv))
    x = torch.randn(1, 4, 9, 9)
    compiled = torch.compile(ours, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), conv(x), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.torch.jit.trace")
def test_a_trace_computes_the_same_for_another_size(keeping):
    """Not the number of tiles and the packed weight of the size that was traced."""
    keeping.requires_grad_(False)
    traced = torch.jit.trace(keeping, (torch.randn(1, 5, 9, 9),))
    x = torch.randn(2, 5, 40, 50)
    torch.testing.assert_close(traced(x), by_torch(keeping, x), rtol=1e-5, atol=1e-5)
    assert "aten::_convolution" in str(traced.inlined_graph)


def test_the_convolutions_of_a_trained_model_are_replaced_too():
    conv = nn.Conv2d(64, 64, 3, padding=1)
    winograd.use_winograd(conv)
    assert type(conv) is winograd.WinogradConv2d
    inference_conv(conv)


def test_other_convolutions_stay():
    module = nn.ModuleList([nn.Conv2d(2, 2, 3, padding="same"), nn.Conv2d(2, 2, 3, padding_mode="circular")])
    use_inference_convolutions(module)
    assert {type(conv) for conv in module} == {nn.Conv2d}


@pytest.fixture(params=["winograd", "packed"])
def keeping(request, monkeypatch):
    """A convolution that keeps its weight transformed for Winograd's method, or packed for oneDNN."""
    if request.param == "winograd":
        monkeypatch.setattr(fcos_fast.models.inference_conv, "MIN_TILES", 1)
        monkeypatch.setattr(winograd, "MIN_CHANNELS", 1)
    return inference_conv(nn.Conv2d(5, 7, 3, padding=1))


def inference_conv(conv: nn.Conv2d) -> nn.Conv2d:
    use_inference_convolutions(conv)
    assert type(conv) is InferenceConv2d
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
    assert type(changed) is InferenceConv2d
    x = x.to(changed.weight.dtype)
    tolerance = 1e-10 if change == "double" else 1e-4
    with mode():
        torch.testing.assert_close(changed(x), by_torch(changed, x), rtol=tolerance, atol=tolerance)


def test_the_weight_is_converted_once_and_not_saved(keeping):
    keys = nn.Conv2d(5, 7, 3).state_dict().keys()
    x = torch.ones(1, 5, 9, 9)
    with torch.inference_mode():
        outputs = [keeping(x)]
        (kept,) = keeping._kept.values()
        outputs.append(keeping(x))
    with torch.no_grad():
        outputs.append(keeping(x))  # kept in inference mode, used outside of it
    assert next(iter(keeping._kept.values())) is kept
    assert len(keeping._kept) == 1
    assert all(torch.equal(outputs[0], other) for other in outputs)
    assert keeping.state_dict().keys() == keys
    assert len(list(keeping.buffers())) == 0
    assert "_kept" not in copy.deepcopy(keeping).__dict__


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
