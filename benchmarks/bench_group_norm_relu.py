"""Group norm and ReLU in a tower of the head on P3, forward and backward.

The peer is ``F.relu(F.group_norm(x))``, in place like in torchvision's towers, with parameters in the dtype of x, since
torch does not support mixed dtypes. Its result keeps the dtype of x; real autocast would run group norm in float32.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F

from benchmarks.case import Case, nbytes
from benchmarks.data import BATCHES
from benchmarks.rows import COMPILED, OURS
from fcos_fast import ops, reference

CHANNELS, GROUPS = 256, 32


def make(device, shape, dtype, memory_format):
    x, upstream = (
        torch.randn(shape).to(device, dtype).contiguous(memory_format=memory_format) for _ in range(2)
    )
    weight, bias = 1 + 0.1 * torch.randn(CHANNELS), 0.1 * torch.randn(CHANNELS)
    return [t.to(device, dtype).requires_grad_() for t in (x, weight, bias)] + [upstream]


def by_torch(x, groups, weight, bias):
    return F.relu(F.group_norm(x, groups, weight, bias), inplace=True)


def forward_backward(function):
    def run(x, weight, bias, upstream):
        y = function(x, GROUPS, weight, bias)
        return y.detach(), *torch.autograd.grad(y, (x, weight, bias), upstream)

    return run


def rows():
    return {
        "torch": forward_backward(by_torch),
        "reference": forward_backward(reference.group_norm_relu),
        COMPILED: forward_backward(torch.compile(reference.group_norm_relu)),
        OURS: forward_backward(ops.group_norm_relu),
        "floor: two copies of x": lambda x, *others: (x.detach().clone(), x.detach().clone()),
    }


def check(result, expected, data):
    """The peer rounds intermediate results to bfloat16, fcos_fast does not; near 0 this affects the gradient."""
    (y, grad_x, *grads), (expected_y, expected_grad_x, *expected_grads) = result, expected
    tolerance = 2e-2 if y.dtype == torch.bfloat16 else 1e-4
    same = (y > 0) == (expected_y > 0)
    for actual, wanted in ((y, expected_y), (grad_x * same, expected_grad_x * same)):
        torch.testing.assert_close(actual, wanted, rtol=tolerance, atol=tolerance)
    for actual, wanted in zip(grads, expected_grads, strict=True):
        scale = wanted.abs().max().item()
        torch.testing.assert_close(actual, wanted, rtol=0, atol=tolerance * scale)


FORMATS = {"NCHW": torch.contiguous_format, "channels-last": torch.channels_last}

SHAPES = {device: (batch.images, CHANNELS, *batch.feature_sizes[0]) for device, batch in BATCHES.items()}

CASES = [
    Case(
        "group_norm_relu",
        f"{'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')}, {name}",
        functools.partial(make, shape=shape, dtype=dtype, memory_format=memory_format),
        rows(),
        check,
        devices=(device,),
        # forward: x to y; backward: x and the gradient of y to the gradient of x
        bytes_moved=lambda x, *others: 5 * nbytes(x),
    )
    for device, shape in SHAPES.items()
    for dtype in (torch.float32, torch.bfloat16)
    for name, memory_format in FORMATS.items()
]


def test_group_norm_relu(time_row):
    time_row()
