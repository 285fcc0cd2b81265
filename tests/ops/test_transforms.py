"""torch.func: gradients, batching and compositions are those of the reference; forward mode raises."""

import pytest
import torch
from torch.func import grad, hessian, jacrev, jvp, vjp, vmap

from fcos_fast import backend, ops
from fcos_fast.assignment import RULES, GroundTruth

CLASSES = torch.tensor([0, 2, -1, -2, 1])
WEIGHT = torch.tensor([0.5, 2.0, 0.0, 1.0, 3.0])
BOXES = torch.tensor([[1.0, 2.0, 3.0, 4.0], [2.0, 2.0, 2.0, 2.0], [5.0, 1.0, 0.5, 2.0]])


def group_norm(x, weight, bias):
    return ops.group_norm_relu(x, 2, weight, bias)


# Name: function of tensors, shapes of the tensors.
CASES = {
    "focal, dense": (lambda x: ops.sigmoid_focal_loss(x, torch.full((5, 3), 0.3)), [(5, 3)]),
    "focal, classes": (lambda x: ops.sigmoid_focal_loss(x, CLASSES), [(5, 3)]),
    "focal, weights": (
        lambda x: ops.sigmoid_focal_loss(x, CLASSES, weight=WEIGHT, reduction="sum"),
        [(5, 3)],
    ),
    "focal, sum": (lambda x: ops.sigmoid_focal_loss(x, CLASSES, reduction="sum"), [(5, 3)]),
    "focal, mean": (lambda x: ops.sigmoid_focal_loss(x, CLASSES, reduction="mean"), [(5, 3)]),
    "star": (lambda x: ops.sigmoid_focal_loss_star(x, CLASSES, reduction="mean"), [(5, 3)]),
    "box": (lambda p, t: ops.box_loss(p, t, "giou", box_format="ltrb"), [(3, 4), (3, 4)]),
    "box, sum": (lambda p: ops.box_loss(p, BOXES, "ciou", "sum", box_format="ltrb"), [(3, 4)]),
    "centerness": (ops.centerness, [(3, 4)]),
    "group norm": (group_norm, [(2, 8, 3, 3), (8,), (8,)]),
    "group norm without parameters": (lambda x: ops.group_norm_relu(x, 4), [(2, 8, 3, 3)]),
}


def make_inputs(shapes, batch=()):
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.rand((*batch, *shape), generator=generator, dtype=torch.float64) * 4 + 0.5 for shape in shapes
    )


def total(function):
    return lambda *inputs: (function(*inputs).sin() * 2).sum()  # so that the incoming gradient is not 1


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def by_reference(transformed, *inputs):
    with backend("reference"):
        return transformed(*inputs)


@pytest.mark.parametrize(
    "transform",
    [
        lambda f, n: grad(total(f), argnums=tuple(range(n))),
        lambda f, n: lambda *x: vjp(f, *x)[1](torch.full_like(f(*x), 0.5)),
        lambda f, n: jacrev(f),
    ],
    ids=["grad", "vjp", "jacrev"],
)
def test_gradients(case, transform):
    function, shapes = case
    transformed, inputs = transform(function, len(shapes)), make_inputs(shapes)
    torch.testing.assert_close(transformed(*inputs), by_reference(transformed, *inputs))


@pytest.mark.parametrize("alone", [False, True], ids=["all batched", "the first batched"])
@pytest.mark.parametrize("inner", [lambda f: f, lambda f: grad(total(f))], ids=["value", "gradient"])
def test_batches(case, inner, alone):
    function, shapes = case
    inputs = make_inputs(shapes, (4,))
    dims = (0, *(None if alone else 0 for _ in shapes[1:]))
    inputs = tuple(x if dim == 0 else x[0] for x, dim in zip(inputs, dims, strict=True))
    transformed = vmap(inner(function), in_dims=dims)
    torch.testing.assert_close(transformed(*inputs), by_reference(transformed, *inputs))


def test_batches_along_other_dimensions_and_nested_batches():
    x = torch.randn(5, 2, 3, 4)
    once = vmap(lambda x: ops.sigmoid_focal_loss(x, CLASSES), in_dims=2, out_dims=2)
    twice = vmap(once, in_dims=1, out_dims=1)
    rows = ops.sigmoid_focal_loss(x.permute(1, 3, 0, 2), CLASSES.expand(2, 4, 5))
    expected = rows.permute(2, 0, 3, 1)
    torch.testing.assert_close(twice(x), expected)


def test_gradients_of_16_bits_keep_their_dtype():
    logits = torch.randn(5, 3, dtype=torch.bfloat16)
    gradient = grad(lambda x: ops.sigmoid_focal_loss(x, CLASSES, reduction="sum"))(logits)
    wide = grad(lambda x: ops.sigmoid_focal_loss(x, CLASSES, reduction="sum"))(logits.float())
    assert gradient.dtype == torch.bfloat16
    torch.testing.assert_close(gradient.float(), wide, rtol=2**-8, atol=1e-6)


def test_forward_mode_raises_and_is_not_zero(case):
    function, shapes = case
    inputs = make_inputs(shapes)
    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        jvp(function, inputs, tuple(map(torch.ones_like, inputs)))
    with torch.autograd.forward_ad.dual_level():
        duals = [torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)) for x in inputs]
        with pytest.raises(RuntimeError, match="no forward-mode derivative"):
            function(*duals)
    tangent = by_reference(lambda *x: jvp(function, x, tuple(map(torch.sin, x)))[1], *inputs)
    assert tangent.abs().max() > 0  # the recommendation in the message works


def test_second_derivatives_raise(case):
    function, shapes = case
    inputs = make_inputs(shapes)
    with pytest.raises(RuntimeError, match="no forward-mode derivative|no second derivative"):
        hessian(total(function))(*inputs)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad(total(grad(total(function))))(*inputs)


def test_the_fused_loss_raises():
    maps = [[torch.randn(1, c, 2, 2)] for c in (3, 4, 1)]
    levels = RULES["official"].levels([(2, 2)] + [(1, 1)] * 4, (16, 16))
    gt = GroundTruth.pack([torch.tensor([[0.0, 0.0, 9.0, 9.0]])], [torch.tensor([1])])
    targets = ops.assign_targets(gt, levels[:1], RULES["official"])

    def loss(x):
        return ops.detection_loss([x], maps[1], maps[2], targets, units=[8])["classification"]

    with pytest.raises(RuntimeError, match='use fcos_fast.backend\\("reference"\\)'):
        grad(loss)(maps[0][0])
    assert by_reference(grad(loss), maps[0][0]).abs().max() > 0
