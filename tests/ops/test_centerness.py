import pytest
import torch

from fcos_fast import ops, reference
from tests.ops.opcheck import assert_compiles, opcheck

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 2**-8, torch.float16: 2**-10}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(4,), (1, 4), (37, 4), (3, 5, 7, 4)])
def test_equals_the_formula_in_float64(dtype, shape, device):
    ltrb = (torch.rand(shape, device=device) * 100 + 0.1).to(dtype)
    left, top, right, bottom = ltrb.double().unbind(-1)
    expected = (
        (torch.minimum(left, right) / torch.maximum(left, right))
        * (torch.minimum(top, bottom) / torch.maximum(top, bottom))
    ).sqrt()
    actual = ops.centerness(ltrb)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.double(), expected, rtol=TOLERANCE[dtype], atol=0)


def test_border_and_outside_are_zero_with_zero_gradient(device):
    rows = [
        [0, 1, 2, 3],
        [-1, 5, 5, 5],
        [0, 0, 0, 0],
        [3, 3, 3, 0],
        [-2, -2, -2, -2],
        *([float("nan") if i == j else 1 for j in range(4)] for i in range(4)),
    ]
    ltrb = torch.tensor(rows, dtype=torch.float32, device=device, requires_grad=True)
    quality = ops.centerness(ltrb)
    assert (quality == 0).all()
    quality.sum().backward()
    assert (ltrb.grad == 0).all()


def test_middle_is_one_with_zero_gradient(device):
    ltrb = torch.full((3, 4), 7.0, device=device, requires_grad=True)
    quality = ops.centerness(ltrb)
    quality.sum().backward()
    assert (quality == 1).all()
    assert (ltrb.grad == 0).all()


def test_gradcheck(device):
    ltrb = (torch.rand(9, 4, dtype=torch.float64, device=device) * 10 + 0.5).requires_grad_()
    assert torch.autograd.gradcheck(ops.centerness, ltrb)


def test_gradient_equals_the_reference_for_views(device):
    base = torch.rand(4, 6, 5, device=device) + 0.1
    upstream = torch.randn(6, 5, device=device)
    grads = []
    for function in (ops.centerness, reference.centerness):
        leaf = base.clone().requires_grad_()
        function(leaf.permute(1, 2, 0)).backward(upstream)
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads)


def test_empty(device):
    ltrb = torch.zeros(0, 4, device=device, requires_grad=True)
    ops.centerness(ltrb).sum().backward()
    assert ltrb.grad.shape == (0, 4)


def test_opcheck_and_compile(device):
    ltrb = torch.rand(5, 4, device=device, requires_grad=True)
    opcheck("centerness", ltrb)
    opcheck("centerness_backward", torch.ones(5, device=device), ltrb.detach())
    assert_compiles(ops.centerness, ltrb)


@pytest.mark.parametrize(
    ("ltrb", "error", "message"),
    [
        (torch.zeros(3, 5), ValueError, r"ltrb has shape \(3, 5\)"),
        (torch.zeros(()), ValueError, "ltrb has shape"),
        (torch.zeros(3, 4, dtype=torch.int32), TypeError, "ltrb has dtype torch.int32"),
    ],
)
def test_invalid_arguments_raise(ltrb, error, message):
    with pytest.raises(error, match=message):
        ops.centerness(ltrb)
