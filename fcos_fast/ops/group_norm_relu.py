"""Group normalization (Wu and He, "Group Normalization", 2018) fused with ReLU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fcos_fast import reference
from fcos_fast._extension import cpu_error, use_native
from fcos_fast.ops import _checks
from fcos_fast.ops._checks import ArgumentValueError
from fcos_fast.ops._register import (
    call,
    one_by_one,
    register_autograd,
    register_fake,
    reject_second_derivative,
    sum_type,
)


def group_norm_relu(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """``F.relu(F.group_norm(x, num_groups, weight, bias, eps))`` in two passes over ``x``, plus two for the gradient.

    Args:
        x: (B, C, ...), float32, float64, bfloat16 or float16; computed in float32 (float64). NCHW and channels-last
            inputs are read without a copy, other strides are copied.
        num_groups: number of groups, a divisor of C.
        weight: (C,) scale per channel, default 1. Its dtype may differ from that of ``x``.
        bias: (C,) shift per channel, default 0. Its dtype may differ from that of ``x``.
        eps: added to the variance.

    Returns:
        The result, with the shape, dtype and memory format of ``x``, like its gradient. The dtype is kept under
        autocast, where torch's ``group_norm`` returns float32: statistics are float32 anyway, and a 16-bit result
        halves the memory traffic. Only ``x`` and two numbers per group and image are saved for backward. Bitwise
        reproducible.

    Raises:
        TypeError: wrong dtype.
        ValueError: wrong shape, device or number of groups.
    """
    _check(x, num_groups, weight, bias)
    if not use_native(x, *(t for t in (weight, bias) if t is not None)):
        return reference.group_norm_relu(x, num_groups, weight, bias, eps)
    return call("group_norm_relu", x, weight, bias, num_groups, float(eps))[0]


def _check(x: Tensor, num_groups: int, weight: Tensor | None, bias: Tensor | None) -> None:
    op = "group_norm_relu"
    parameters = {name: t for name, t in (("weight", weight), ("bias", bias)) if t is not None}
    _checks.check_same_device(op, x=x, **parameters)
    _checks.check_float(op, x=x, **parameters)
    if x.ndim < 2:
        raise ArgumentValueError(f"{op}: x has shape {tuple(x.shape)}; expected (B, C, ...)")
    channels = x.shape[1]
    _checks.check_positive(op, num_groups=num_groups)
    if channels % num_groups != 0:
        raise ArgumentValueError(
            f"{op}: num_groups={num_groups}; expected a divisor of the number of channels, {channels}"
        )
    for name, tensor in parameters.items():
        if tensor.shape != (channels,):
            raise ArgumentValueError(
                f"{op}: {name} has shape {tuple(tensor.shape)}; expected ({channels},), one entry per channel of x"
            )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, _, _ = inputs
    _, mean, rstd = output
    ctx.save_for_backward(x, mean, rstd, weight, bias)


def _backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    grads = call("group_norm_relu_backward", grad, *ctx.saved_tensors)
    wanted = ctx.needs_input_grad[:3]
    return *(g if wants else None for g, wants in zip(grads, wanted, strict=True)), None, None


def _fake(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, num_groups: int, eps: float
) -> tuple[Tensor, ...]:
    statistics = [x.new_empty((x.shape[0], num_groups), dtype=sum_type(x.dtype)) for _ in range(2)]
    return torch.empty_like(x), *statistics


def _fake_backward(
    grad: Tensor, x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, ...]:
    parameters = [x.new_empty(0) if t is None else t.new_empty(x.shape[1]) for t in (weight, bias)]
    return torch.empty_like(x), *parameters


if cpu_error is None:
    register_autograd("group_norm_relu", _backward, _setup_context, one_by_one)
    reject_second_derivative("group_norm_relu_backward", one_by_one)
    register_fake("group_norm_relu")(_fake)
    register_fake("group_norm_relu_backward")(_fake_backward)
