import pytest
import torch

from fcos_fast import ops, reference
from fcos_fast.ops.box_loss import KINDS
from tests.ops.opcheck import assert_compiles, opcheck

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12, torch.bfloat16: 2**-7, torch.float16: 2**-9}
TORCHVISION = {
    "giou": "generalized_box_iou_loss",
    "diou": "distance_box_iou_loss",
    "ciou": "complete_box_iou_loss",
}


def make_pairs(shape, box_format="xyxy", dtype=torch.float32, device="cpu"):
    """Pairs of boxes; many overlap and some do not."""
    pred, target = (torch.rand((*shape, 4), dtype=torch.float64, device=device) * 8 + 0.5 for _ in range(2))
    if box_format == "xyxy":
        for boxes in (pred, target):
            boxes[..., 2:] += boxes[..., :2]
    return pred.to(dtype).requires_grad_(), target.to(dtype).requires_grad_()


@pytest.mark.parametrize("shape", [(), (1,), (33,), (2, 5, 9)])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("box_format", ["xyxy", "ltrb"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_reference_in_float64(kind, box_format, dtype, shape, device):
    pred, target = make_pairs(shape, box_format, dtype, device)
    kwargs = {"box_format": box_format, "smooth": 0.5}
    loss = ops.box_loss(pred, target, kind, **kwargs)
    upstream = torch.randn(shape, device=device, dtype=loss.dtype)
    grads = torch.autograd.grad(loss, (pred, target), upstream)

    wide = tuple(b.detach().double().requires_grad_() for b in (pred, target))
    expected = reference.box_loss(*wide, kind, **kwargs)
    expected_grads = torch.autograd.grad(expected, wide, upstream.double())
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    assert loss.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(
        loss.double(), expected, rtol=TOLERANCE[loss.dtype], atol=TOLERANCE[loss.dtype]
    )
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        assert grad.dtype == dtype
        torch.testing.assert_close(grad.double(), expected_grad, **tolerance)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("kind", TORCHVISION)
def test_equals_torchvision(kind, dtype, reduction, device, torchvision):
    pred, target = make_pairs((57,), dtype=dtype, device=device)
    actual = ops.box_loss(pred, target, kind, reduction)
    expected = getattr(torchvision.ops, TORCHVISION[kind])(pred, target, reduction=reduction)
    torch.testing.assert_close(actual, expected)  # the dtype too: float32 for 16-bit boxes
    for grad, expected_grad in zip(
        torch.autograd.grad(actual.sum(), (pred, target)),
        torch.autograd.grad(expected.sum(), (pred, target)),
        strict=True,
    ):
        tolerance = max(1e-4, 2 * TOLERANCE[dtype])  # half of it is torchvision's own 16-bit rounding
        torch.testing.assert_close(grad, expected_grad, rtol=tolerance, atol=tolerance / 100)


def test_official_log_iou_by_hand(device):
    # Boxes 4x4 and 2x4 with a 2x4 overlap: (8 + 1) / (16 + 1).
    pred = torch.tensor([[2.0, 2.0, 2.0, 2.0]], device=device)
    target = torch.tensor([[0.0, 2.0, 2.0, 2.0]], device=device)
    loss = ops.box_loss(pred, target, "iou", box_format="ltrb", smooth=1.0, eps=0.0)
    torch.testing.assert_close(loss, -torch.log(torch.tensor([9 / 17], device=device)))


@pytest.mark.parametrize("box_format", ["xyxy", "ltrb"])
@pytest.mark.parametrize("kind", [k for k in KINDS if k != "ciou"])  # ciou treats its weight as a constant
def test_gradcheck(kind, box_format, device):
    pred, target = make_pairs((12,), box_format, torch.float64, device)
    assert torch.autograd.gradcheck(
        lambda p, t: ops.box_loss(p, t, kind, box_format=box_format), (pred, target)
    )
    assert torch.autograd.gradcheck(
        lambda p, t: ops.box_loss(p, t, kind, "sum", box_format=box_format), (pred, target)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_touching_equal_and_empty_boxes_follow_the_reference(kind, device):
    rows = [[0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 4, 4], [1, 1, 1, 1], [2, 2, 2, 5], [0, 0, 4, 4]]
    others = [[0, 0, 4, 4], [4, 0, 8, 4], [9, 9, 11, 12], [1, 1, 1, 1], [0, 0, 4, 4], [1, 0, 3, 4]]
    grads = []
    for function in (ops.box_loss, reference.box_loss):
        pred = torch.tensor(rows, dtype=torch.float32, device=device, requires_grad=True)
        loss = function(pred, torch.tensor(others, dtype=torch.float32, device=device), kind)
        grads.append((loss.detach(), torch.autograd.grad(loss.sum(), pred)[0]))
    assert grads[0][0].isfinite().all()
    torch.testing.assert_close(grads[0][0], grads[1][0], rtol=1e-5, atol=1e-6)
    proper = [0, 1, 2, 5]  # the gradient of the reference is 0/0 for a box with zero area
    torch.testing.assert_close(grads[0][1][proper], grads[1][1][proper], rtol=1e-4, atol=1e-6)
    assert grads[0][1].isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_nan_propagates(kind, device):
    target = torch.tensor([[0.0, 0, 4, 4]] * 4, device=device)
    pred = target + 1
    pred[range(4), range(4)] = float("nan")
    assert ops.box_loss(pred, target, kind).isnan().all()


def test_the_mean_of_many_halves_does_not_overflow(device):
    pred = torch.tensor([[0.0, 0, 2, 2]], device=device).half().expand(200_000, 4)
    mean = ops.box_loss(pred, pred + 3, "linear_iou", "mean")
    assert mean == 1


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_empty(reduction, device):
    pred, target = (torch.zeros(0, 4, device=device, requires_grad=True) for _ in range(2))
    loss = ops.box_loss(pred, target, "giou", reduction)
    assert loss.sum() == 0
    assert torch.autograd.grad(loss.sum(), pred)[0].shape == (0, 4)


def test_mixed_precision_computes_in_the_wider_type(device):
    pred, target = make_pairs((9,), device=device)
    loss = ops.box_loss(pred.bfloat16(), target)
    assert loss.dtype == reference.box_loss(pred.bfloat16(), target).dtype == torch.float32
    torch.testing.assert_close(loss, ops.box_loss(pred.bfloat16().float(), target))


def test_the_same_bits_each_run():
    pred, target = make_pairs((50_000,))
    threads = torch.get_num_threads()
    try:
        totals = set()
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            totals |= {ops.box_loss(pred, target, "ciou", "sum").item() for _ in range(20)}
    finally:
        torch.set_num_threads(threads)
    assert len(totals) == 1


def test_double_backward_raises(device):
    pred, target = make_pairs((3,), device=device)
    (grad,) = torch.autograd.grad(ops.box_loss(pred, target, reduction="sum"), pred, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind, device):
    pred, target = make_pairs((7,), device=device)
    opcheck("box_loss", pred, target, kind, False, 0.0, 1e-7)
    opcheck("box_loss_sum", pred, target, kind, True, 1.0, 1e-7)
    opcheck(
        "box_loss_backward",
        torch.ones(7, device=device),
        pred.detach(),
        target.detach(),
        kind,
        False,
        0.0,
        1e-7,
    )


def test_compiles_as_one_graph(device):
    pred, target = make_pairs((7,), device=device)
    assert_compiles(lambda p, t: ops.box_loss(p, t, "diou", "mean"), pred, target)


@pytest.mark.parametrize(
    ("pred", "target", "kwargs", "error", "message"),
    [
        (torch.zeros(3, 4), torch.zeros(2, 4), {}, ValueError, r"pred has shape \(3, 4\), target \(2, 4\)"),
        (torch.zeros(3, 5), torch.zeros(3, 5), {}, ValueError, r"pred has shape \(3, 5\)"),
        (torch.zeros(3, 4), [[0, 0, 1, 1]], {}, TypeError, "target must be a tensor, got list"),
        (torch.zeros(3, 4), torch.zeros(3, 4).long(), {}, TypeError, "target has dtype torch.int64"),
        (torch.zeros(3, 4), torch.zeros(3, 4), {"kind": "iuo"}, ValueError, "kind='iuo'"),
        (torch.zeros(3, 4), torch.zeros(3, 4), {"box_format": "xywh"}, ValueError, "box_format='xywh'"),
        (
            torch.zeros(3, 4),
            torch.zeros(3, 4),
            {"reduction": ""},
            ValueError,
            "Invalid value for arg reduction: ''",
        ),
    ],
)
def test_invalid_arguments_raise(pred, target, kwargs, error, message):
    with pytest.raises(error, match=message):
        ops.box_loss(pred, target, **kwargs)
