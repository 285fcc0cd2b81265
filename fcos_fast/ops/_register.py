"""Gradients, fake kernels and ``torch.func`` for the native operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree

Function = Callable[..., Any]
"""Its arguments depend on the schema of the operator."""

_functions: dict[str, type[torch.autograd.Function]] = {}


def call(name: str, *args: Any) -> Any:
    """Call ``fcos_fast::name(*args)``, with support for ``torch.func`` transforms."""
    if in_transform():
        return _functions[name].apply(*args)
    return getattr(torch.ops.fcos_fast, name)(*args)


def in_transform() -> bool:
    """Whether a ``torch.func`` transform or forward-mode differentiation is active.

    These do not support gradients registered with ``torch.library``: they need an ``autograd.Function``.
    """
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def reject_transforms(op: str) -> None:
    """Raise inside ``torch.func`` transforms and forward-mode differentiation."""
    if in_transform():
        raise RuntimeError(
            f"{op} supports neither torch.func transforms nor forward-mode differentiation; "
            'use fcos_fast.backend("reference") instead'
        )


def register_autograd(
    name: str, backward: Function, setup_context: Function, vmap: Callable[[str], Function]
) -> None:
    """Register the gradient of ``fcos_fast::name`` for eager mode, traced graphs and ``torch.func``.

    Args:
        name: operator, which must be called through :func:`call`.
        backward: ``(ctx, *grads)``; must call operators through :func:`call`.
        setup_context: ``(ctx, inputs, output)``.
        vmap: batching rule of the operator: :func:`over_rows` or :func:`one_by_one`.
    """
    op = getattr(torch.ops.fcos_fast, name)

    def jvp(ctx: Any, *tangents: Any) -> None:
        raise RuntimeError(
            f"fcos_fast::{name} has no forward-mode derivative (torch.func.jvp, jacfwd, hessian); use "
            'fcos_fast.backend("reference"), or, for a first derivative, torch.func.vjp or jacrev'
        )

    torch.library.register_autograd(f"fcos_fast::{name}", backward, setup_context=setup_context)
    methods = {"forward": op.__call__, "backward": backward, "setup_context": setup_context}
    methods |= {"jvp": jvp, "vmap": vmap(name)}
    static = {key: staticmethod(method) for key, method in methods.items()}
    _functions[name] = type(f"Function_{name}", (torch.autograd.Function,), static)


def over_rows(name: str) -> Function:
    """Batching rule of an operator that processes each row of its tensors independently."""

    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, int]:
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


def one_by_one(name: str) -> Function:
    """Batching rule of any operator with several results: one call per element of the batch."""

    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> tuple[Any, tuple[int, ...]]:
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
    """Register ``fcos_fast::backward_name`` as the gradient of ``fcos_fast::name``. Not differentiable again.

    Args:
        name: operator whose first ``tensors`` arguments are tensors (or None) and the others numbers or strings.
        backward_name: operator ``(grad, *tensors, *numbers)`` that returns the gradient of the first tensor.
        tensors: number of tensor arguments.
        differentiable: indices of the tensors that have a gradient. For index 1 the operator must be symmetric: the
            backward operator is called with the two tensors exchanged.
    """

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:tensors])
        ctx.numbers = inputs[tensors:]

    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        grads: list[Tensor | None] = [None] * (tensors + len(ctx.numbers))
        for i in differentiable:
            if ctx.needs_input_grad[i]:
                grads[i] = call(backward_name, grad, *(saved if i == 0 else saved[::-1]), *ctx.numbers)
        return tuple(grads)

    register_autograd(name, backward, setup_context, over_rows)


def reject_second_derivative(backward_name: str, vmap: Callable[[str], Function] = over_rows) -> None:
    """Make differentiating ``fcos_fast::backward_name`` raise a clear error."""

    def backward(ctx: Any, *grads: Any) -> None:
        raise RuntimeError(
            f"fcos_fast::{backward_name} has no second derivative; "
            'use fcos_fast.backend("reference") for double backward'
        )

    register_autograd(backward_name, backward, lambda ctx, inputs, output: None, vmap)


def register_fake(name: str) -> Callable[[Function], Function]:
    """Register the fake kernel of ``fcos_fast::name``: output shapes, dtypes and strides."""

    def register(function: Function) -> Function:
        def fake(*args: Any) -> Any:
            _check_one_device(name, args)
            return function(*args)

        return torch.library.register_fake(f"fcos_fast::{name}")(fake)

    return register


def _check_one_device(name: str, args: tuple[Any, ...]) -> None:
    devices = {str(x.device) for x in _pytree.tree_leaves(args) if isinstance(x, Tensor)}
    if len(devices) > 1:
        raise RuntimeError(
            f"fcos_fast::{name}: expected all tensors on the same device, got {', '.join(sorted(devices))}"
        )


def sum_type(dtype: torch.dtype) -> torch.dtype:
    """The dtype of a sum: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32
