"""Gradients of the native operators, in the shape that all of them share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def register_gradient(name: str, backward_name: str, tensors: int, differentiable: Sequence[int]) -> None:
    """Give ``fcos_fast::name`` the gradient that ``fcos_fast::backward_name`` computes, once.

    Args:
        name: operator whose first ``tensors`` arguments are tensors and the others plain numbers.
        backward_name: operator (grad, *tensors, *numbers) -> gradient of the first tensor.
        tensors: number of tensor arguments.
        differentiable: which of them get a gradient. A second one gets it by symmetry: the backward operator is
            called with the two exchanged.
    """
    backward_op = getattr(torch.ops.fcos_fast, backward_name)

    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:tensors])
        ctx.numbers = inputs[tensors:]

    def backward(ctx, grad: Tensor):
        saved = ctx.saved_tensors
        grads: list[Tensor | None] = [None] * (tensors + len(ctx.numbers))
        for i in differentiable:
            if ctx.needs_input_grad[i]:
                grads[i] = backward_op(grad, *(saved if i == 0 else saved[::-1]), *ctx.numbers)
        return tuple(grads)

    torch.library.register_autograd(f"fcos_fast::{name}", backward, setup_context=setup_context)


def refuse_second_derivative(backward_name: str) -> None:
    """Make a backward through ``fcos_fast::backward_name`` a clear error."""

    def backward(ctx, *grads):
        raise RuntimeError(
            f"fcos_fast::{backward_name} has no second derivative; "
            'use fcos_fast.backend("reference") where a backward of a backward is needed'
        )

    torch.library.register_autograd(f"fcos_fast::{backward_name}", backward)


def register_fake(name: str) -> Callable:
    """Shapes, types and strides of ``fcos_fast::name`` without its values."""
    return torch.library.register_fake(f"fcos_fast::{name}")


def sum_type(dtype: torch.dtype) -> torch.dtype:
    """Sums of 16-bit losses are float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
