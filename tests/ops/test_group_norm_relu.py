import pytest
import torch
import torch.nn.functional as F

from fcos_fast import ops, reference
from tests.ops.opcheck import assert_compiles, opcheck

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12, torch.bfloat16: 2**-7, torch.float16: 2**-9}
SHAPES = [  # and number of groups
    ((2, 64, 25, 42), 32),
    ((1, 24, 41, 37), 2),  # more than one unit of work per image and per channel
    ((3, 30, 7, 11), 5),
    ((2, 7, 3, 5, 2), 7),
    ((2, 33, 1, 1), 3),
    ((2, 12), 4),
    ((1, 1, 9), 1),
]
FORMATS = ["contiguous", "channels_last", "sliced"]


def arrange(x, memory_format):
    """Copy into another memory format."""
    if memory_format == "contiguous" or x.ndim == 2:
        return x.contiguous()
    if memory_format == "channels_last":
        return x.movedim(1, -1).contiguous().movedim(-1, 1)
    return torch.cat((x, x + 1), dim=-1)[..., : x.shape[-1]]


def make(shape, dtype=torch.float32, memory_format="contiguous", device="cpu", parameters=None):
    """x, weight, bias, upstream gradient."""
    numbers = torch.randn(shape, dtype=torch.float64, device=device) * 3 + 2
    x = arrange(numbers.to(dtype), memory_format).requires_grad_()
    weight, bias = (torch.randn(shape[1], device=device).to(parameters or dtype) for _ in range(2))
    upstream = torch.randn(shape, device=device).to(dtype)
    return x, weight.requires_grad_(), bias.requires_grad_(), upstream


def steps(t):
    """The strides of dimensions with more than one element; others are arbitrary."""
    return [stride for size, stride in zip(t.shape, t.stride(), strict=True) if size > 1]


def result_and_gradients(function, x, groups, weight, bias, upstream):
    y = function(x, groups, weight, bias)
    wanted = [t for t in (x, weight, bias) if t is not None]
    return [y, *torch.autograd.grad(y, wanted, upstream)]


def by_torch(x, groups, weight=None, bias=None, eps=1e-5):
    if weight is None:  # with only a bias, the backward of torch 2.11 fails
        weight = x.new_ones(x.shape[1])
    return F.relu(F.group_norm(x, groups, weight, bias, eps))


def assert_like_torch_in_float64(arguments, groups, dtype):
    x, weight, bias, upstream = arguments
    wide = [None if t is None else t.detach().double().requires_grad_() for t in (x, weight, bias)]
    actual = result_and_gradients(ops.group_norm_relu, x, groups, weight, bias, upstream)
    expected = result_and_gradients(by_torch, wide[0], groups, *wide[1:], upstream.double())
    for a, e in zip(actual, expected, strict=True):
        scale = max(1, e.abs().max().item())
        torch.testing.assert_close(a.double(), e, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * scale)
    return actual


@pytest.mark.parametrize(("shape", "groups"), SHAPES)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_equals_torch_in_float64(dtype, memory_format, shape, groups, device):
    arguments = make(shape, dtype, memory_format, device)
    y, grad_x, *grads = assert_like_torch_in_float64(arguments, groups, dtype)
    like = torch.empty_like(arguments[0])
    assert y.dtype == grad_x.dtype == dtype
    assert steps(y) == steps(grad_x) == steps(like)
    assert [g.dtype for g in grads] == [dtype, dtype]


@pytest.mark.parametrize("memory_format", FORMATS)
def test_the_reference_equals_torch(memory_format):
    x, weight, bias, upstream = make((2, 12, 5, 7), torch.float64, memory_format)
    actual = result_and_gradients(reference.group_norm_relu, x, 4, weight, bias, upstream)
    expected = result_and_gradients(by_torch, x, 4, weight, bias, upstream)
    torch.testing.assert_close(actual, expected)
    assert actual[0].stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize("absent", ["weight", "bias", "both"])
@pytest.mark.parametrize("memory_format", FORMATS)
def test_parameters_may_be_absent(memory_format, absent, device):
    x, weight, bias, upstream = make((2, 12, 9, 5), torch.float32, memory_format, device)
    weight = None if absent in ("weight", "both") else weight
    bias = None if absent in ("bias", "both") else bias
    assert_like_torch_in_float64((x, weight, bias, upstream), 3, torch.float32)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_float32_parameters_of_bfloat16_activations(memory_format, device):
    arguments = make((2, 16, 9, 5), torch.bfloat16, memory_format, device, parameters=torch.float32)
    _, _, grad_weight, grad_bias = assert_like_torch_in_float64(arguments, 4, torch.bfloat16)
    assert grad_weight.dtype == grad_bias.dtype == torch.float32


@pytest.mark.parametrize("memory_format", FORMATS[:2])
@pytest.mark.parametrize(("offset", "outlier"), [(3000.0, 0.0), (0.0, 3000.0)])
def test_no_cancellation_with_a_large_mean_or_a_first_outlier(offset, outlier, memory_format, device):
    x, weight, bias, _ = make((2, 8, 40, 61), torch.float32, memory_format, device)
    with torch.no_grad():
        x += offset
        x[:, :, 0, 0] += outlier
    y = ops.group_norm_relu(x, 2, weight, bias)
    expected = by_torch(x.double(), 2, weight.double(), bias.double())
    # float32 represents a mean of 3000 to 1.2e-4, a 25,000th of the deviation.
    torch.testing.assert_close(y.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("memory_format", FORMATS[:2])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_only_affect_their_group(bad, memory_format, device):
    x, weight, bias, upstream = make((2, 8, 5, 5), torch.float32, memory_format, device)
    with torch.no_grad():
        x[1, 5, 2, 2] = bad
    actual = result_and_gradients(ops.group_norm_relu, x, 4, weight, bias, upstream)
    expected = result_and_gradients(by_torch, x, 4, weight, bias, upstream)
    assert actual[0][1, 4:6].isnan().all()
    assert actual[0][1, :4].isfinite().all()
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, equal_nan=True, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("memory_format", FORMATS)
def test_gradcheck(memory_format, device):
    x, weight, bias, _ = make((2, 6, 3, 3), torch.float64, memory_format, device)
    assert torch.autograd.gradcheck(lambda *a: ops.group_norm_relu(a[0], 3, *a[1:]), (x, weight, bias))


def test_only_required_gradients(device):
    x, weight, bias, upstream = make((2, 6, 3, 3), device=device)
    ops.group_norm_relu(x.detach(), 3, weight, bias.detach()).backward(upstream)
    assert x.grad is None
    assert bias.grad is None
    assert weight.grad is not None


@pytest.mark.parametrize("shape", [(0, 6, 3, 3), (2, 6, 0, 3), (2, 0, 3, 3)])
def test_empty(shape, device):
    x, weight, bias, upstream = make(shape, device=device)
    y, *grads = result_and_gradients(ops.group_norm_relu, x, 3, weight, bias, upstream)
    assert y.shape == grads[0].shape == shape
    assert all((g == 0).all() for g in grads[1:])


def test_a_group_of_one_number_is_its_bias(device):
    x, weight, bias, upstream = make((1, 4), device=device)
    y, grad_x, *_ = result_and_gradients(ops.group_norm_relu, x, 4, weight, bias, upstream)
    torch.testing.assert_close(y[0], F.relu(bias))
    torch.testing.assert_close(grad_x, torch.zeros_like(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_autocast_keeps_the_type_of_the_activations(dtype, device):
    x, weight, bias, upstream = make((2, 6, 3, 3), dtype, device=device, parameters=torch.float32)
    plain = result_and_gradients(ops.group_norm_relu, x, 3, weight, bias, upstream)
    with torch.autocast(device, torch.bfloat16):
        cast = result_and_gradients(ops.group_norm_relu, x, 3, weight, bias, upstream)
    assert cast[0].dtype == dtype
    torch.testing.assert_close(cast, plain, rtol=0, atol=0)


@pytest.mark.parametrize("memory_format", FORMATS[:2])
@pytest.mark.parametrize("batch", [1, 9])
def test_the_same_bits_for_any_number_of_threads(batch, memory_format):
    arguments = make((batch, 32, 60, 61), torch.float32, memory_format)
    x, weight, bias, upstream = arguments
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            results.append(result_and_gradients(ops.group_norm_relu, x, 8, weight, bias, upstream))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            assert torch.equal(a, b)


def test_double_backward_raises(device):
    x, weight, bias, upstream = make((2, 6, 3, 3), device=device)
    y = ops.group_norm_relu(x, 3, weight, bias)
    (grad,) = torch.autograd.grad(y, x, upstream, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("memory_format", FORMATS)
def test_opcheck(memory_format, device):
    x, weight, bias, upstream = make((2, 6, 3, 3), torch.bfloat16, memory_format, device, torch.float32)
    opcheck("group_norm_relu", x, weight, bias, 3, 1e-5)
    opcheck("group_norm_relu", x, None, bias, 3, 1e-5)
    statistics = [torch.rand(2, 3, device=device) + 1 for _ in range(2)]
    detached = [t.detach() for t in (x, weight, bias)]
    opcheck("group_norm_relu_backward", upstream, detached[0], *statistics, *detached[1:])
    opcheck("group_norm_relu_backward", upstream, detached[0], *statistics, None, None)


def test_compiles_as_one_graph(device):
    x, weight, bias, _ = make((2, 6, 3, 3), device=device)
    assert_compiles(lambda *a: ops.group_norm_relu(a[0], 3, *a[1:]), x, weight, bias)


X = torch.zeros(2, 6, 3, 3)


@pytest.mark.parametrize(
    ("x", "groups", "weight", "error", "message"),
    [
        (X[0, 0, 0], 3, None, ValueError, r"x has shape \(3,\); expected \(B, C, ...\)"),
        (X, 4, None, ValueError, "num_groups=4; expected a divisor of the number of channels, 6"),
        (X, 0, None, ValueError, "num_groups=0; expected a positive integer"),
        (X, 3.0, None, TypeError, "num_groups=3.0; expected a positive integer"),
        (X, 3, torch.ones(3), ValueError, r"weight has shape \(3,\); expected \(6,\)"),
        (X, 3, [1.0] * 6, TypeError, "weight must be a tensor, got list"),
        (X, 3, torch.ones(6).long(), TypeError, "weight has dtype torch.int64"),
        (X.long(), 3, None, TypeError, "x has dtype torch.int64"),
    ],
)
def test_invalid_arguments_raise(x, groups, weight, error, message):
    with pytest.raises(error, match=message):
        ops.group_norm_relu(x, groups, weight)
