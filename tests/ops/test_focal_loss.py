import pytest
import torch

from fcos_fast import ops, reference
from tests.ops.opcheck import assert_compiles, opcheck

FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
ON_EVERY_DEVICE = [torch.float32, torch.bfloat16, torch.float16]  # float64 on CUDA runs the reference
TOLERANCE = {
    torch.float32: {"rtol": 3e-6, "atol": 2e-7},
    torch.float64: {"rtol": 1e-12, "atol": 1e-14},
    torch.bfloat16: {"rtol": 2**-8, "atol": 1e-6},
    torch.float16: {"rtol": 2**-10, "atol": 2**-24},
}
FORMS = {
    "focal": (ops.sigmoid_focal_loss, reference.sigmoid_focal_loss, {}),
    "gamma": (ops.sigmoid_focal_loss, reference.sigmoid_focal_loss, {"gamma": 1.5, "alpha": 0.6}),
    "gamma0": (ops.sigmoid_focal_loss, reference.sigmoid_focal_loss, {"gamma": 0.0}),
    "unweighted": (ops.sigmoid_focal_loss, reference.sigmoid_focal_loss, {"alpha": -1}),
    "star": (ops.sigmoid_focal_loss_star, reference.sigmoid_focal_loss_star, {}),
    "star3": (ops.sigmoid_focal_loss_star, reference.sigmoid_focal_loss_star, {"gamma": 3.0, "beta": 0.5}),
}
MEMORY_FORMATS = {  # (..., C) tensors as users pass them
    "rows": lambda t: t,
    "nchw": lambda t: t.movedim(-1, 1).contiguous().movedim(1, -1),
    "sliced": lambda t: torch.cat([t, t], dim=-1)[..., : t.shape[-1]],
    "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
}


def make_case(device, dtype=torch.float32, shape=(2, 13, 7, 11), memory_format="rows", scale=6.0):
    inputs = MEMORY_FORMATS[memory_format](
        (torch.randn(shape, device=device, dtype=torch.float64) * scale).to(dtype)
    )
    classes = torch.randint(-2, shape[-1], shape[:-1], device=device)
    return inputs.requires_grad_(), classes


def one_hot(classes, count, dtype):
    return (classes.unsqueeze(-1) == torch.arange(count, device=classes.device)).to(dtype)


def loss_and_grad(function, inputs, targets, upstream=None, **kwargs):
    loss = function(inputs, targets, **kwargs)
    upstream = torch.ones_like(loss) if upstream is None else upstream.to(loss.dtype)
    (grad,) = torch.autograd.grad(loss, inputs, upstream)
    return loss.detach(), grad


@pytest.mark.parametrize("kind", ["classes", "hard", "soft"])
@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_equals_the_reference_in_float64(form, dtype, memory_format, kind, device):
    function, plain, kwargs = FORMS[form]
    inputs, classes = make_case(device, dtype, memory_format=memory_format)
    targets = classes
    if kind == "hard":
        targets = one_hot(classes, inputs.shape[-1], dtype)
    elif kind == "soft":
        targets = MEMORY_FORMATS[memory_format](torch.rand(inputs.shape, device=device).to(dtype))
    upstream = torch.randn(inputs.shape, device=device).to(dtype)

    loss, grad = loss_and_grad(function, inputs, targets, upstream, **kwargs)
    exact = inputs.detach().double().requires_grad_()
    wide = targets.double() if kind != "classes" else targets
    expected_loss, expected_grad = loss_and_grad(plain, exact, wide, upstream.double(), **kwargs)

    assert loss.dtype == dtype
    torch.testing.assert_close(loss.double(), expected_loss, **TOLERANCE[dtype])
    tolerance = TOLERANCE[dtype] | ({"atol": 3e-6} if dtype == torch.float32 else {})
    torch.testing.assert_close(grad.double(), expected_grad, **tolerance)


def make_weight(kind, rows, device):
    """Weights as trainers have them (0 or 1), in long runs, and all different."""
    if kind == "random":
        return torch.rand(rows, device=device) + 0.1
    if kind == "zeros and ones":
        return (torch.rand(rows, device=device) < 0.7).float()
    weight = torch.full(rows, 0.25, device=device)
    weight[0] = 3
    return weight


@pytest.mark.parametrize("kind", ["zeros and ones", "runs", "random"])
@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_a_weight_multiplies_the_losses_of_its_row(form, dtype, memory_format, kind, device):
    function, plain, kwargs = FORMS[form]
    inputs, classes = make_case(device, dtype, memory_format=memory_format)
    weight = make_weight(kind, classes.shape, device)
    exact = inputs.detach().double().requires_grad_()
    wide = weight.double().unsqueeze(-1)

    upstream = torch.randn(inputs.shape, device=device).to(dtype)
    loss, grad = loss_and_grad(function, inputs, classes, upstream, weight=weight, **kwargs)
    expected, expected_grad = loss_and_grad(plain, exact, classes, upstream.double() * wide, **kwargs)
    torch.testing.assert_close(loss.double(), expected * wide, **TOLERANCE[dtype])
    tolerance = TOLERANCE[dtype] | ({"atol": 1e-5} if dtype == torch.float32 else {})
    torch.testing.assert_close(grad.double(), expected_grad, **tolerance)

    total, grad = loss_and_grad(function, inputs, classes, weight=weight, reduction="sum", **kwargs)
    _, expected_grad = loss_and_grad(plain, exact, classes, wide.expand(inputs.shape), **kwargs)
    torch.testing.assert_close(total.double(), (expected * wide).sum(), rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(grad.double(), expected_grad, **tolerance)
    mean = function(inputs, classes, weight=weight, reduction="mean", **kwargs)
    torch.testing.assert_close(mean, total / inputs.numel())


@pytest.mark.parametrize("classes", [1, 2, 7, 8, 9, 16, 17, 80])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_weights_of_every_number_of_classes(classes, dtype, device):
    inputs, labels = make_case(device, dtype, shape=(2, 9, 8, classes))
    weight = make_weight("random", labels.shape, device)
    total, grad = loss_and_grad(ops.sigmoid_focal_loss, inputs, labels.int(), weight=weight, reduction="sum")
    exact = inputs.detach().double().requires_grad_()
    options = {"weight": weight.double(), "reduction": "sum"}
    expected, expected_grad = loss_and_grad(reference.sigmoid_focal_loss, exact, labels, **options)
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-7)
    tolerance = TOLERANCE[dtype] | ({"atol": 3e-6} if dtype == torch.float32 else {})
    torch.testing.assert_close(grad.double(), expected_grad, **tolerance)


@pytest.mark.parametrize("function", [ops.sigmoid_focal_loss, ops.sigmoid_focal_loss_star])
def test_rows_of_weight_zero_are_ignored(function, device):
    inputs, classes = make_case(device)
    weight = make_weight("zeros and ones", classes.shape, device)
    assert (weight == 0).any()
    spoilt = inputs.detach().clone()
    spoilt[weight == 0] = float("inf")
    spoilt[0, 0] = torch.where(weight[0, 0, :, None] == 0, float("nan"), spoilt[0, 0])
    total, grad = loss_and_grad(function, spoilt.requires_grad_(), classes, weight=weight, reduction="sum")
    ignored = torch.where(weight == 0, -2, classes)
    expected, expected_grad = loss_and_grad(function, inputs, ignored, reduction="sum")
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(grad, expected_grad)


@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 5, 7, 1), (2, 17, 19, 91), (1, 1, 1, 16), (5, 1, 33, 3)])
def test_sums_and_gradients_for_odd_shapes(shape, memory_format, device):
    inputs, classes = make_case(device, shape=shape, memory_format=memory_format)
    total, grad = loss_and_grad(ops.sigmoid_focal_loss, inputs, classes, reduction="sum")
    exact = inputs.detach().double().requires_grad_()
    expected, expected_grad = loss_and_grad(reference.sigmoid_focal_loss, exact, classes, reduction="sum")
    torch.testing.assert_close(total.double(), expected, rtol=2e-6, atol=1e-7)
    torch.testing.assert_close(grad.double(), expected_grad, rtol=3e-6, atol=3e-6)
    if memory_format in ("rows", "nchw"):
        assert grad.stride() == inputs.stride()


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_equals_torchvision(reduction, device, torchvision):
    inputs, classes = make_case(device)
    targets = one_hot(classes, inputs.shape[-1], torch.float32)
    actual, grad = loss_and_grad(ops.sigmoid_focal_loss, inputs, targets, reduction=reduction)
    expected, expected_grad = loss_and_grad(
        torchvision.ops.sigmoid_focal_loss, inputs, targets, reduction=reduction
    )
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("function", [ops.sigmoid_focal_loss, ops.sigmoid_focal_loss_star])
@pytest.mark.parametrize("kind", ["classes", "soft"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_gradcheck(function, kind, reduction, device):
    inputs, classes = make_case(device, torch.float64, shape=(1, 4, 3, 5), scale=2.0)
    targets = classes if kind == "classes" else torch.rand_like(inputs).detach()
    assert torch.autograd.gradcheck(lambda x: function(x, targets, reduction=reduction), inputs)
    if kind == "classes":
        weight = torch.rand(classes.shape, device=device)
        assert torch.autograd.gradcheck(
            lambda x: function(x, targets, reduction=reduction, weight=weight), inputs
        )


@pytest.mark.parametrize("memory_format", ["rows", "nchw"])
def test_ignored_rows_have_no_effect_for_any_logits(memory_format, device):
    inputs, classes = make_case(device, memory_format=memory_format)
    ignored = classes == -2
    assert ignored.any()
    spoilt = inputs.detach().clone()
    spoilt[ignored] = float("nan")
    spoilt.requires_grad_()
    total, grad = loss_and_grad(ops.sigmoid_focal_loss, spoilt, classes, reduction="sum")
    expected, expected_grad = loss_and_grad(ops.sigmoid_focal_loss, inputs, classes, reduction="sum")
    assert total == expected
    assert (grad[ignored] == 0).all()
    assert torch.equal(grad, expected_grad)


@pytest.mark.parametrize("dtype", ON_EVERY_DEVICE, ids=str)
def test_infinite_and_nan_logits(dtype, device):
    inf = float("inf")
    logits = [[inf], [-inf], [inf], [-inf], [float("nan")], [200.0], [-200.0]]
    inputs = torch.tensor(logits, device=device, dtype=dtype, requires_grad=True)
    classes = torch.tensor([0, 0, -1, -1, 0, -1, 0], device=device)
    loss, grad = loss_and_grad(ops.sigmoid_focal_loss, inputs, classes)
    expected = torch.tensor([0.0, inf, inf, 0.0, float("nan"), 150.0, 50.0], dtype=dtype)
    torch.testing.assert_close(loss.flatten().cpu(), expected, equal_nan=True)
    expected = torch.tensor([0.0, -0.25, 0.75, 0.0, float("nan"), 0.75, -0.25], dtype=dtype)
    torch.testing.assert_close(grad.flatten().cpu(), expected, equal_nan=True)


@pytest.mark.parametrize("memory_format", ["rows", "nchw"])
@pytest.mark.parametrize("dtype", ON_EVERY_DEVICE, ids=str)
def test_the_sum_with_an_infinite_logit_is_infinite_and_its_gradient_is_not(dtype, memory_format, device):
    inputs, classes = make_case(device, dtype, shape=(2, 4, 8, 16), memory_format=memory_format)
    with torch.no_grad():
        inputs[classes == -1] = float("inf")
        inputs[classes >= 0] = -float("inf")
    for function in (ops.sigmoid_focal_loss, ops.sigmoid_focal_loss_star):
        loss, grad = loss_and_grad(function, inputs, classes, reduction="sum")
        assert loss == float("inf")
        assert grad.isfinite().all()
    total = ops.sigmoid_focal_loss(inputs, torch.full_like(classes, -2), reduction="sum")
    assert total == 0


@pytest.mark.parametrize("kind", ["classes", "soft"])
@pytest.mark.parametrize("memory_format", MEMORY_FORMATS)
@pytest.mark.parametrize("dtype", ON_EVERY_DEVICE, ids=str)
@pytest.mark.parametrize("name", ["sigmoid_focal_loss", "sigmoid_focal_loss_star"])
def test_the_sum_with_its_gradient(name, dtype, memory_format, kind, device):
    inputs, classes = make_case(device, dtype, memory_format=memory_format)
    inputs = inputs.detach()
    soft = MEMORY_FORMATS[memory_format](torch.rand(inputs.shape, device=device).to(dtype))
    targets = classes if kind == "classes" else soft
    call = getattr(torch.ops.fcos_fast, f"{name}_sum")
    total, grad = call(inputs, targets, None, 2.0 if "star" in name else 0.25, 2.0, True)
    alone, nothing = call(inputs, targets, None, 2.0 if "star" in name else 0.25, 2.0, False)
    assert nothing.numel() == 0
    assert torch.equal(total, alone)
    backward = getattr(torch.ops.fcos_fast, f"{name}_backward")
    one = torch.ones((), device=device, dtype=total.dtype)
    expected = backward(one, inputs, targets, None, 2.0 if "star" in name else 0.25, 2.0)
    torch.testing.assert_close(grad, expected, rtol=1e-6, atol=0)
    assert grad.stride() == expected.stride()


@pytest.mark.parametrize("classes", [1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 80, 91])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("memory_format", ["rows", "nchw"])
def test_every_number_of_classes(classes, dtype, memory_format, device):
    """Foreground and ignored rows at every position within a vector access."""
    inputs, labels = make_case(device, dtype, shape=(2, 9, 8, classes), memory_format=memory_format)
    for wide in (labels, labels.int()):
        total, grad = loss_and_grad(ops.sigmoid_focal_loss, inputs, wide, reduction="sum")
        exact = inputs.detach().double().requires_grad_()
        expected, expected_grad = loss_and_grad(reference.sigmoid_focal_loss, exact, labels, reduction="sum")
        torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-7)
        tolerance = TOLERANCE[dtype] | ({"atol": 3e-6} if dtype == torch.float32 else {})
        torch.testing.assert_close(grad.double(), expected_grad, **tolerance)


@pytest.mark.parametrize("logit", [-20.0, -11.0, -6.0, -4.6, -2.0, -0.5, 0.0, 0.5, 2.0, 6.0, 11.0, 20.0])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_sums_of_16_bit_logits_are_good_to_1e_5(dtype, logit, device):
    """The worst case: all logits are equal, so that errors do not cancel."""
    inputs = torch.full((64, 16), logit, device=device).to(dtype)
    for label in (-1, 3):
        classes = torch.full((64,), label, device=device)
        total = ops.sigmoid_focal_loss(inputs, classes, reduction="sum")
        expected = reference.sigmoid_focal_loss(inputs.double(), classes, reduction="sum")
        torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("function", [ops.sigmoid_focal_loss, reference.sigmoid_focal_loss])
def test_a_class_weight_of_zero_has_its_limit(function, gamma, device):
    """For infinite logits too, for either class; NaN propagates."""
    inf, nan = float("inf"), float("nan")
    inputs = torch.tensor([[inf, -inf, 0.0, nan]] * 2, device=device)
    foreground, background = torch.zeros(4, dtype=torch.long), torch.full((4,), -1)
    for alpha, classes in ((1.0, background), (0.0, foreground)):
        loss = function(inputs.reshape(8, 1), classes.repeat(2).to(device), alpha, gamma)
        expected = torch.tensor([[0.0, 0.0, 0.0, nan]] * 2, device=device)
        torch.testing.assert_close(loss.reshape(2, 4), expected, equal_nan=True, rtol=0, atol=0)
    x = inputs[:, :3].clone().requires_grad_()
    total, grad = loss_and_grad(
        ops.sigmoid_focal_loss,
        x,
        torch.full((2,), -1, device=device),
        reduction="sum",
        alpha=1.0,
        gamma=gamma,
    )
    assert total == 0
    assert (grad == 0).all()


def test_gamma_zero_has_the_limits_of_cross_entropy(device):
    inf = float("inf")
    inputs = torch.tensor([[inf], [-inf], [inf], [-inf]], device=device, requires_grad=True)
    classes = torch.tensor([0, 0, -1, -1], device=device)
    loss, grad = loss_and_grad(ops.sigmoid_focal_loss, inputs, classes, gamma=0.0, alpha=-1)
    torch.testing.assert_close(loss.flatten().cpu(), torch.tensor([0.0, inf, inf, 0.0]), rtol=0, atol=1e-37)
    torch.testing.assert_close(grad.flatten().cpu(), torch.tensor([0.0, -1.0, 1.0, 0.0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("name", ["sigmoid_focal_loss", "sigmoid_focal_loss_star"])
def test_sums_that_16_bits_cannot_represent(name, reduction, dtype, device):
    """The sum is above float16's maximum of 65,504 and between two bfloat16 numbers; the result is float32."""
    inputs = torch.full((1_001, 91), 3.0, dtype=dtype, device=device, requires_grad=True)
    classes = torch.full((1_001,), -1, device=device)
    loss, grad = loss_and_grad(getattr(ops, name), inputs, classes, reduction=reduction)
    expected = getattr(reference, name)(inputs.detach().double(), classes, reduction=reduction)
    assert loss.dtype == torch.float32
    assert grad.dtype == dtype
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=0)
    assert getattr(reference, name)(inputs, classes, reduction=reduction).dtype == torch.float32


def test_the_mean_of_many_halves_does_not_overflow(device):
    inputs = torch.zeros(1_000_000, 2, dtype=torch.float16, device=device)
    mean = ops.sigmoid_focal_loss(inputs, torch.full((1_000_000,), -1, device=device), reduction="mean")
    torch.testing.assert_close(mean.float().cpu(), torch.tensor(0.75 * 0.25 * 0.693147), rtol=1e-3, atol=0)


def test_dense_targets_of_another_dtype_promote(device, torchvision):
    inputs = torch.randn(5, 3, device=device)
    soft = torch.rand(5, 3, device=device, dtype=torch.float64)
    for function in (
        ops.sigmoid_focal_loss,
        reference.sigmoid_focal_loss,
        torchvision.ops.sigmoid_focal_loss,
    ):
        assert function(inputs, soft).dtype == torch.float64
        assert function(inputs.bfloat16(), soft.float()).dtype == torch.float32


@pytest.mark.parametrize("shape", [(0, 5), (4, 0), (0, 3, 4, 2)])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_empty_inputs_have_a_live_graph(shape, reduction, device):
    inputs = torch.zeros(shape, device=device, requires_grad=True)
    for targets in (
        torch.zeros(shape, device=device),
        torch.zeros(shape[:-1], dtype=torch.long, device=device),
    ):
        loss = ops.sigmoid_focal_loss(inputs, targets - 1 if shape[-1] == 0 else targets, reduction=reduction)
        assert loss.sum() == 0
        (grad,) = torch.autograd.grad(loss.sum(), inputs)
        assert grad.shape == shape


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
def test_class_targets_of_any_integer_type(dtype, device):
    inputs, classes = make_case(device)
    classes = classes.clamp(min=0)
    assert torch.equal(
        ops.sigmoid_focal_loss(inputs, classes.to(dtype)), ops.sigmoid_focal_loss(inputs, classes)
    )


def test_the_same_bits_each_run_and_for_any_number_of_threads():
    inputs, classes = make_case("cpu", shape=(2, 40, 50, 23))
    threads = torch.get_num_threads()
    results = set()
    try:
        for count in (1, 2, 3, 1, 2):
            torch.set_num_threads(count)
            for _ in range(20):
                results.add(ops.sigmoid_focal_loss(inputs, classes, reduction="sum").item())
    finally:
        torch.set_num_threads(threads)
    assert len(results) == 1


@pytest.mark.gpu
def test_the_same_bits_each_run_on_the_gpu():
    inputs, classes = make_case("cuda", shape=(2, 100, 168, 80))
    assert len({ops.sigmoid_focal_loss(inputs, classes, reduction="sum").item() for _ in range(100)}) == 1


def test_backward_twice_gives_the_gradient_twice(device):
    inputs, classes = make_case(device)
    loss = ops.sigmoid_focal_loss(inputs, classes, reduction="sum") * 3
    first = torch.autograd.grad(loss, inputs, retain_graph=True)[0]
    second = torch.autograd.grad(loss, inputs)[0]
    assert torch.equal(first, second)


def test_double_backward_raises(device):
    inputs, classes = make_case(device)
    (grad,) = torch.autograd.grad(
        ops.sigmoid_focal_loss(inputs, classes, reduction="sum"), inputs, create_graph=True
    )
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


def test_autocast_gives_float32_without_touching_the_logits(device):
    inputs, classes = make_case(device, torch.bfloat16)
    with torch.autocast(device, dtype=torch.bfloat16):
        total, grad = loss_and_grad(ops.sigmoid_focal_loss, inputs, classes, reduction="sum")
        assert ops.sigmoid_focal_loss(inputs, classes).dtype == torch.float32
    assert total.dtype == torch.float32
    assert grad.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["sigmoid_focal_loss", "sigmoid_focal_loss_star"])
@pytest.mark.parametrize("memory_format", ["rows", "nchw", "sliced"])
def test_opcheck(name, memory_format, device):
    inputs, classes = make_case(device, memory_format=memory_format)
    soft = torch.rand(inputs.shape, device=device)
    for targets in (classes, soft):
        for weight in (None,) if targets is soft else (None, torch.rand(classes.shape, device=device)):
            arguments = (inputs, targets, weight, 0.25, 2.0)
            opcheck(name, *arguments)
            opcheck(f"{name}_sum", *arguments, True)
            opcheck(f"{name}_sum", *arguments, False)
            one = torch.ones((), device=device)
            opcheck(f"{name}_backward", one, inputs.detach(), *arguments[1:])


def test_compiles_as_one_graph(device):
    inputs, classes = make_case(device)

    def step(x):
        return (
            ops.sigmoid_focal_loss(x, classes, reduction="sum")
            + ops.sigmoid_focal_loss_star(x, classes).sum()
            + ops.sigmoid_focal_loss(x, classes, weight=torch.ones_like(classes).float()).sum()
        )

    assert_compiles(step, inputs)


@pytest.mark.parametrize(
    ("inputs", "targets", "kwargs", "error", "message"),
    [
        (
            torch.zeros(3, 2, dtype=torch.int64),
            torch.zeros(3, 2),
            {},
            TypeError,
            "inputs has dtype torch.int64",
        ),
        (torch.zeros(3, 2), torch.zeros(3, 3), {}, ValueError, "dense targets have shape"),
        (torch.zeros(3, 2), torch.zeros(3, 2, dtype=torch.int64), {}, ValueError, "class targets have shape"),
        (torch.zeros(3, 2), torch.zeros(3, dtype=torch.bool), {}, TypeError, "targets has dtype torch.bool"),
        (torch.zeros(3, 2), torch.tensor([0, 2, -1]), {}, ValueError, "class target 2 with 2 classes"),
        (torch.zeros(3, 2), torch.tensor([0, 1, -3]), {}, ValueError, "class target -3"),
        (
            torch.zeros(3, 2),
            torch.zeros(3, 2),
            {"reduction": "avg"},
            ValueError,
            "for arg reduction: 'avg'",
        ),
        (torch.zeros(3, 2), torch.zeros(3, 2), {"gamma": -1}, ValueError, "gamma=-1"),
        (torch.zeros(3, 2), torch.zeros(3, 2), {"alpha": 2}, ValueError, "alpha=2"),
        (
            torch.zeros(3, 2),
            torch.zeros(3, 2, requires_grad=True),
            {},
            ValueError,
            "targets require a gradient",
        ),
        (torch.zeros(3, 2), torch.zeros(3, 2, device="meta"), {}, ValueError, "targets is on meta"),
        (
            torch.zeros(3, 2),
            torch.zeros(3, 2),
            {"weight": torch.ones(3)},
            ValueError,
            "weight requires class targets",
        ),
        (
            torch.zeros(3, 2),
            torch.tensor([0, 1, 1]),
            {"weight": torch.ones(3, 2)},
            ValueError,
            r"weight has shape \(3, 2\); expected the shape of the class targets, \(3,\)",
        ),
        (
            torch.zeros(3, 2),
            torch.tensor([0, 1, 1]),
            {"weight": torch.ones(3, dtype=torch.int64)},
            TypeError,
            "weight has dtype torch.int64",
        ),
        (
            torch.zeros(3, 2),
            torch.tensor([0, 1, 1]),
            {"weight": torch.ones(3, requires_grad=True)},
            ValueError,
            "weight requires a gradient",
        ),
        ([1.0], torch.zeros(3, 2), {}, TypeError, "inputs must be a tensor, got list"),
        (torch.zeros(3, 2), [0, 1, 1], {}, TypeError, "targets must be a tensor, got list"),
        (torch.zeros(3, 2), torch.zeros(3, 2), {"gamma": float("nan")}, ValueError, "gamma=nan"),
        (torch.zeros(3, 2), torch.zeros(3, 2), {"alpha": float("nan")}, ValueError, "alpha=nan"),
    ],
)
def test_invalid_arguments_raise(inputs, targets, kwargs, error, message):
    with pytest.raises(error, match=message):
        ops.sigmoid_focal_loss(inputs, targets, **kwargs)


def test_classes_are_checked_in_forward_mode():
    with (
        torch.autograd.forward_ad.dual_level(),
        pytest.raises(ValueError, match="class target 7 with 2 classes"),
    ):
        ops.sigmoid_focal_loss(torch.zeros(1, 2), torch.tensor([7]))


def test_unchecked_classes_out_of_range_are_background():
    inputs, classes = make_case("cpu", shape=(1, 3, 4, 5))
    wild = classes.clamp(min=-1).clone()
    wild[0, 0, 0], wild[0, 1, 1], wild[0, 2, 2], wild[0, 0, 3] = 5, 10**6, 2**32, 2**32 - 2
    tame = torch.where(wild >= 5, -1, wild)
    for memory_format in ("rows", "nchw"):
        x = MEMORY_FORMATS[memory_format](inputs.detach())
        unchecked = torch.ops.fcos_fast.sigmoid_focal_loss(x, wild, None, 0.25, 2.0)
        assert torch.equal(unchecked, ops.sigmoid_focal_loss(x, tame))


@pytest.mark.gpu
@pytest.mark.large
def test_more_than_two_to_the_31_elements():
    rows = 2**31 // 80 + 5
    inputs = torch.full((rows, 80), -3.0, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    classes = torch.full((rows,), -1, device="cuda", dtype=torch.int32)
    classes[-1] = 79
    loss, grad = loss_and_grad(ops.sigmoid_focal_loss, inputs, classes, reduction="sum")
    expected = (rows * 80 - 1) * (
        0.75 * torch.tensor(-3.0).sigmoid() ** 2 * torch.log1p(torch.tensor(-3.0).exp())
    )
    torch.testing.assert_close(loss.cpu().double(), expected.double(), rtol=1e-2, atol=0)
    assert grad[-1, 79] < 0 < grad[-1, 78]


def test_direct_calls_with_wrong_shapes_raise():
    inputs = torch.zeros(3, 2)
    with pytest.raises(RuntimeError, match="expected targets with the shape of inputs"):
        torch.ops.fcos_fast.sigmoid_focal_loss(inputs, torch.zeros(2, dtype=torch.long), None, 0.25, 2.0)
    with pytest.raises(RuntimeError, match="grad must be a scalar"):
        torch.ops.fcos_fast.sigmoid_focal_loss_backward(torch.zeros(3), inputs, inputs, None, 0.25, 2.0)
    classes = torch.zeros(3, dtype=torch.long)
    with pytest.raises(RuntimeError, match="expected class targets, and weight with their shape"):
        torch.ops.fcos_fast.sigmoid_focal_loss(inputs, classes, torch.ones(2), 0.25, 2.0)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_confident_logits_have_a_finite_slope_in_the_reference(gamma):
    inputs = torch.tensor([[88.0], [-88.0], [1e30], [-1e30]], requires_grad=True)
    for targets in (torch.ones(4, 1), torch.zeros(4, 1)):
        for function in (ops.sigmoid_focal_loss, reference.sigmoid_focal_loss):
            loss = function(inputs, targets, gamma=gamma, reduction="sum")
            assert torch.autograd.grad(loss, inputs)[0].isfinite().all()
