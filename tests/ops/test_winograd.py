import itertools

import pytest
import torch
from torch.nn import functional as F

from fcos_fast import backend
from fcos_fast.ops.winograd import transforms
from fcos_fast.reference import winograd as reference
from tests.ops.arguments import valid_arguments
from tests.ops.opcheck import opcheck

NAMES = ["winograd_input", "winograd_gradient", "winograd_output"]
SHAPES = [(1, 5, 4, 4), (2, 16, 9, 13), (3, 37, 1, 1), (1, 67, 30, 7), (2, 33, 3, 18), (1, 1, 6, 5)]


def tiles(shape) -> int:
    return shape[0] * reference.tiles_along(shape[2]) * reference.tiles_along(shape[3])


def arguments(name, x, begin, end):
    """The argument that is written is the last one."""
    squares = torch.randn(36, end - begin, x.shape[1])
    if name == "winograd_output":
        return squares, torch.randn(x.shape[1]), begin, torch.full_like(x, 7.0)
    return x, begin, squares


def in_float64(args):
    return [a.double() if isinstance(a, torch.Tensor) else a for a in args]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_reference_in_float64(name, shape):
    x = torch.randn(shape).to(memory_format=torch.channels_last)
    count = tiles(shape)
    for begin, end in [(0, count), (count // 3, count), (0, count - count // 2), (count, count)]:
        args = arguments(name, x, begin, end)
        exact = in_float64(args)
        getattr(torch.ops.fcos_fast, name)(*args)
        getattr(reference, name)(*exact)
        torch.testing.assert_close(args[-1].double(), exact[-1], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_any_strides_with_contiguous_channels(name):
    """Slices of maps and of squares; what lies beside them stays."""
    memory = torch.randn(3, 12, 11, 20).permute(0, 3, 1, 2)
    x = memory[1:, 1:18, 2:11, 3:10]
    args = list(arguments(name, x, 1, 9))
    place = NAMES.index(name) != 2 and 2
    around = torch.full((40, 11, 20), 3.0)
    around[2:38, 1:9, 2:19] = args[place]
    args[place] = around[2:38, 1:9, 2:19]
    if name == "winograd_output":
        memory.fill_(7.0)
        args[-1] = x
    exact = in_float64(args)
    getattr(torch.ops.fcos_fast, name)(*args)
    getattr(reference, name)(*exact)
    torch.testing.assert_close(args[-1].double(), exact[-1], rtol=1e-5, atol=1e-4)
    around[2:38, 1:9, 2:19] = 3.0
    assert (around == 3.0).all()
    if name == "winograd_output":
        x.fill_(7.0)
        assert (memory == 7.0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_reaches_the_outputs_that_see_it_and_no_other_tile(value):
    weight = torch.randn(3, 4, 3, 3)
    for y, x in itertools.product(range(9), range(10)):
        maps = torch.randn(2, 4, 9, 10).to(memory_format=torch.channels_last)
        maps[1, 2, y, x] = value
        seen = ~F.conv2d(maps, weight, padding=1).isfinite()
        found = ~by_transforms(maps, weight).isfinite()
        assert (found | ~seen).all()
        allowed = F.max_pool2d(F.pad(seen.float(), (0, 2, 0, 3)), 4)
        assert (allowed.repeat_interleave(4, 2).repeat_interleave(4, 3)[..., :9, :10] >= found.float()).all()


def by_transforms(x, weight):
    matrix = x.new_tensor(reference.WEIGHT)
    transformed = torch.einsum("ia,kcab,jb->ijck", matrix, weight, matrix).flatten(0, 1)
    squares = torch.empty(36, tiles(x.shape), x.shape[1])
    out = torch.empty(x.shape[0], len(weight), *x.shape[2:]).to(memory_format=torch.channels_last)
    transforms(x).winograd_input(x, 0, squares)
    transforms(x).winograd_output(torch.bmm(squares, transformed), None, 0, out)
    return out


def test_the_gradient_is_transformed_by_the_transpose_of_the_output():
    squares = torch.randn(36, 12, 8, requires_grad=True)
    out = torch.zeros(1, 8, 16, 12).to(memory_format=torch.channels_last)
    grad = torch.randn(1, 8, 16, 12).to(memory_format=torch.channels_last)
    with backend("reference"):
        transforms(squares).winograd_output(squares, None, 0, out)
    (expected,) = torch.autograd.grad(out, squares, grad)
    found = torch.empty_like(expected)
    transforms(grad).winograd_gradient(grad, 0, found)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


def test_the_same_bits_for_any_number_of_threads():
    x = torch.randn(2, 40, 31, 45).to(memory_format=torch.channels_last)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(by_transforms(x, torch.ones(1, 40, 3, 3)))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_float64_and_the_reference_backend_use_the_reference():
    x = torch.zeros(1, 1, 4, 4)
    assert transforms(x) is torch.ops.fcos_fast
    assert transforms(x.double()) is reference
    with backend("reference"):
        assert transforms(x) is reference


@pytest.mark.parametrize("name", NAMES)
def test_opcheck(name):
    opcheck(name, *valid_arguments()[name])


CHANNELS_LAST = torch.zeros(1, 2, 8, 8).to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("x", "begin", "squares", "message"),
    [
        (torch.zeros(1, 2, 8, 8), 0, torch.zeros(36, 4, 2), "contiguous channels"),
        (CHANNELS_LAST.double(), 0, torch.zeros(36, 4, 2), "expected float32 map"),
        (CHANNELS_LAST, 0, torch.zeros(36, 4, 2).double(), "expected float32 squares"),
        (CHANNELS_LAST, 0, torch.zeros(35, 4, 2), r"expected squares \(36, N, C\)"),
        (CHANNELS_LAST, 0, torch.zeros(36, 4, 3), r"expected squares \(36, N, C\)"),
        (CHANNELS_LAST, 0, torch.zeros(36, 2, 4).transpose(1, 2), r"contiguous channels"),
        (CHANNELS_LAST, 1, torch.zeros(36, 4, 2), "begin=1; expected 0..0"),
        (CHANNELS_LAST, -1, torch.zeros(36, 4, 2), "begin=-1; expected 0..0"),
    ],
)
def test_invalid_arguments_raise(x, begin, squares, message):
    for name in NAMES[:2]:
        with pytest.raises(RuntimeError, match=message):
            getattr(torch.ops.fcos_fast, name)(x, begin, squares)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fcos_fast.winograd_output(squares, None, begin, x)
    with pytest.raises(RuntimeError, match="size of bias=3; expected 2..2"):
        torch.ops.fcos_fast.winograd_output(torch.zeros(36, 4, 2), torch.zeros(3), 0, CHANNELS_LAST)
