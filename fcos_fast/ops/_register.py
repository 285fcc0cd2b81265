"""Gradients, fake kernels and ``torch.func`` for the native operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree

_functions: dict[str, type[torch.autograd.Function]] = {}


def call(name: str, *args):
    """``fcos_fast::name(*args)``, also where ``torch.func`` transforms it."""
    if in_transform():
        return _functions[name].apply(*args)
    return getattr(torch.ops.fcos_fast, name)(*args)


def in_transform() -> bool:
    """Does a transform of ``torch.func``, or forward-mode differentiation, run?

    These do not know operators that are registered with ``torch.library``: they need an ``autograd.Function``.
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def refuse_transforms(op: str) -> None:
    """Raise where ``torch.func`` or forward-mode differentiation would need more than the operator has."""
    if in_transform():
        raise RuntimeError(
            f"{op} supports neither torch.func transforms nor forward-mode differentiation; "
            'use fcos_fast.backend("reference") there'
        )


def register_autograd(name: str, backward: Callable, setup_context: Callable, vmap: Callable) -> None:
    """Give ``fcos_fast::name`` its gradient, in eager mode, in traced graphs and under ``torch.func``.

    Args:
        name: operator that is called through :func:`call`.
        backward: ``(ctx, *grads)``; calls its own operators through :func:`call`.
        setup_context: ``(ctx, inputs, output)``.
        vmap: how the operator is batched: :func:`over_rows` or :func:`one_by_one`.
    """
    op = getattr(torch.ops.fcos_fast, name)

    def jvp(ctx, *tangents):
        raise RuntimeError(
            f"fcos_fast::{name} has no forward-mode derivative (torch.func.jvp, jacfwd, hessian); use "
            'fcos_fast.backend("reference"), or, for a first derivative, torch.func.vjp or jacrev'
        )

    torch.library.register_autograd(f"fcos_fast::{name}", backward, setup_context=setup_context)
    methods = {"forward": op.__call__, "backward": backward, "setup_context": setup_context}
    methods |= {"jvp": jvp, "vmap": vmap(name)}
    static = {key: staticmethod(method) for key, method in methods.items()}
    _functions[name] = type(f"Function_{name}", (torch.autograd.Function,), static)


def over_rows(name: str) -> Callable:
    """Batch an operator that treats each row of its tensors alone: the new axis becomes the first."""

    def vmap(info, in_dims, *args):
        batched = (
            arg
            if not isinstance(arg, Tensor)
            else arg.expand(info.batch_size, *arg.shape)
            if dim is None
            else arg.movedim(dim, 0)
            for arg, dim in zip(args, in_dims, strict=True)
        )
        return call(name, *batched), 0

    return vmap


def one_by_one(name: str) -> Callable:
    """Batch any operator with several results, by a call per element."""

    def vmap(info, in_dims, *args):
        results = [
            call(
                name,
                *(arg if dim is None else arg.select(dim, i) for arg, dim in zip(args, in_dims, strict=True)),
            )
            for i in range(info.batch_size)
        ]
        return _pytree.tree_map(lambda *parts: torch.stack(parts), *results), (0,) * len(results[0])

    return vmap


def register_gradient(name: str, backward_name: str, tensors: int, differentiable: Sequence[int]) -> None:
    """Give ``fcos_fast::name`` the gradient that ``fcos_fast::backward_name`` computes, once.

    Args:
        name: operator whose first ``tensors`` arguments are tensors and the others plain numbers.
        backward_name: operator (grad, *tensors, *numbers) -> gradient of the first tensor.
        tensors: number of tensor arguments.
        differentiable: which of them get a gradient. A second one gets it by symmetry: the backward operator is
            called with the two exchanged.
    """

    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:tensors])
        ctx.numbers = inputs[tensors:]

    def backward(ctx, grad: Tensor):
        saved = ctx.saved_tensors
        grads: list[Tensor | None] = [None] * (tensors + len(ctx.numbers))
        for i in differentiable:
            if ctx.needs_input_grad[i]:
                grads[i] = call(backward_name, grad, *(saved if i == 0 else saved[::-1]), *ctx.numbers)
        return tuple(grads)

    register_autograd(name, backward, setup_context, over_rows)


def refuse_second_derivative(backward_name: str, vmap: Callable = over_rows) -> None:
    """Make a backward through ``fcos_fast::backward_name`` a clear error."""

    def backward(ctx, *grads):
        raise RuntimeError(
            f"fcos_fast::{backward_name} has no second derivative; "
            'use fcos_fast.backend("reference") where a backward of a backward is needed'
        )

    register_autograd(backward_name, backward, lambda ctx, inputs, output: None, vmap)


def register_fake(name: str) -> Callable:
    """Shapes, types and strides of ``fcos_fast::name`` without its values."""

    def register(function: Callable) -> Callable:
        def fake(*args):
            _check_one_device(name, args)
            return function(*args)

        return torch.library.register_fake(f"fcos_fast::{name}")(fake)

    return register


def _check_one_device(name: str, args: tuple) -> None:
    devices = {str(x.device) for x in _pytree.tree_leaves(args) if isinstance(x, Tensor)}
    if len(devices) > 1:
        raise RuntimeError(
            f"fcos_fast::{name}: expected all tensors on one device, got {', '.join(sorted(devices))}"
        )


def sum_type(dtype: torch.dtype) -> torch.dtype:
    """Sums of 16-bit losses are float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
