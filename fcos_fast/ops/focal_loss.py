"""Sigmoid focal loss and its variant FL* (Lin et al., "Focal Loss for Dense Object Detection", 2017)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fcos_fast import reference
from fcos_fast._extension import cpu_error, use_native
from fcos_fast.assignment import IGNORED
from fcos_fast.ops import _checks
from fcos_fast.ops._checks import ArgumentValueError
from fcos_fast.ops._register import (
    call,
    in_transform,
    register_fake,
    register_gradient,
    reject_second_derivative,
    sum_type,
)
from fcos_fast.reference.reduction import reduce


def sigmoid_focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float = 0.25,
    gamma: float = 2,
    reduction: str = "none",
    weight: Tensor | None = None,
) -> Tensor:
    """Focal loss on logits. Drop-in for ``torchvision.ops.sigmoid_focal_loss``; also accepts class targets and weights.

    Args:
        inputs: (..., C) logits, float32, float64, bfloat16 or float16, any strides; computed in float32 (float64).
        targets: either dense targets, in [0, 1] and with the shape of ``inputs``; or class targets, an integer tensor
            of shape ``inputs.shape[:-1]`` with values 0..C-1, -1 for background and -2 for ignored rows.
        alpha: weight of the positives; the negatives have weight 1 - alpha. Negative for no weighting.
        gamma: focusing exponent, at least 0.
        reduction: ``"none"``, ``"sum"`` or ``"mean"`` (over all elements).
        weight: with class targets, a floating-point tensor of their shape that multiplies the losses of each row. Rows
            of weight 0 are ignored.

    Returns:
        The losses, with the shape and dtype of ``inputs`` (promoted with the dtype of dense targets; float32 under
        autocast), or a scalar. The scalar is float32 for 16-bit inputs, whose precision is too low for sums, and
        bitwise reproducible. Only ``inputs`` gets a gradient, which is 0 in ignored rows.

    Raises:
        TypeError: wrong dtype.
        ValueError: wrong shape, device or value.
    """
    op = "sigmoid_focal_loss"
    _check(op, inputs, targets, reduction, weight)
    _checks.check_focal(op, alpha, gamma)
    if not use_native(inputs, targets):
        return reference.sigmoid_focal_loss(inputs, targets, alpha, gamma, reduction, weight)
    targets = _ignore_weightless(targets, weight)
    return _call(op, inputs, targets, weight, (float(alpha), float(gamma)), reduction)


def sigmoid_focal_loss_star(
    inputs: Tensor,
    targets: Tensor,
    gamma: float = 2,
    beta: float = 1,
    reduction: str = "none",
    weight: Tensor | None = None,
) -> Tensor:
    """The variant FL* from the appendix of the RetinaNet paper: ``-log(sigmoid(gamma * x_t + beta)) / gamma``.

    ``x_t`` is the logit for positives and its negative for negatives. ``gamma`` must be greater than 0. See
    :func:`sigmoid_focal_loss` for everything else.
    """
    op = "sigmoid_focal_loss_star"
    _check(op, inputs, targets, reduction, weight)
    if not gamma > 0:
        raise ArgumentValueError(f"{op}: gamma={gamma}; expected a number > 0")
    if not use_native(inputs, targets):
        return reference.sigmoid_focal_loss_star(inputs, targets, gamma, beta, reduction, weight)
    targets = _ignore_weightless(targets, weight)
    return _call(op, inputs, targets, weight, (float(gamma), float(beta)), reduction)


def _ignore_weightless(targets: Tensor, weight: Tensor | None) -> Tensor:
    return targets if weight is None else torch.where(weight == 0, IGNORED, targets)


def _check(op: str, inputs: Tensor, targets: Tensor, reduction: str, weight: Tensor | None) -> None:
    _checks.check_same_device(op, inputs=inputs, targets=targets)
    if weight is not None:
        _check_weight(op, targets, weight)
    _checks.check_float(op, inputs=inputs)
    _checks.check_reduction(op, reduction)
    if targets.is_floating_point():
        _checks.check_float(op, targets=targets)
        if targets.shape != inputs.shape:
            raise ArgumentValueError(
                f"{op}: dense targets have shape {tuple(targets.shape)}; expected the shape of inputs, "
                f"{tuple(inputs.shape)}"
            )
        if targets.requires_grad:
            raise ArgumentValueError(
                f"{op}: targets require a gradient, which is not supported; pass targets.detach()"
            )
        return
    _checks.check_integer(op, targets=targets)
    if inputs.ndim == 0 or targets.shape != inputs.shape[:-1]:
        raise ArgumentValueError(
            f"{op}: class targets have shape {tuple(targets.shape)}, inputs {tuple(inputs.shape)}; "
            "expected inputs.shape[:-1] (for dense targets, pass a floating-point tensor)"
        )
    _checks.check_class_targets(op, "class target", targets, inputs.shape[-1])


def _check_weight(op: str, targets: Tensor, weight: Tensor) -> None:
    _checks.check_same_device(op, targets=targets, weight=weight)
    _checks.check_float(op, weight=weight)
    if targets.is_floating_point():
        raise ArgumentValueError(
            f"{op}: weight requires class targets; multiply the losses of dense targets yourself"
        )
    if weight.shape != targets.shape:
        raise ArgumentValueError(
            f"{op}: weight has shape {tuple(weight.shape)}; expected the shape of the class targets, "
            f"{tuple(targets.shape)}"
        )
    if weight.requires_grad:
        raise ArgumentValueError(
            f"{op}: weight requires a gradient, which is not supported; pass weight.detach()"
        )


def _call(
    op: str,
    inputs: Tensor,
    targets: Tensor,
    weight: Tensor | None,
    numbers: tuple[float, float],
    reduction: str,
) -> Tensor:
    dtype = inputs.dtype
    if targets.is_floating_point() and targets.dtype != dtype:
        dtype = torch.promote_types(dtype, targets.dtype)
        inputs, targets = inputs.to(dtype), targets.to(dtype)
    if not inputs.is_meta and torch.is_autocast_enabled(inputs.device.type):
        dtype = sum_type(dtype)
    if reduction == "none":
        return call(op, inputs.to(dtype), targets, weight, *numbers)
    if in_transform():
        return reduce(call(op, inputs.to(sum_type(dtype)), targets, weight, *numbers), reduction)
    with_grad = _in_one_pass(inputs)
    total, _ = getattr(torch.ops.fcos_fast, f"{op}_sum")(inputs, targets, weight, *numbers, with_grad)
    if reduction == "mean" and inputs.numel() > 0:
        total = total / inputs.numel()
    return total


def _in_one_pass(inputs: Tensor) -> bool:
    """Whether to compute the gradient in forward.

    Pays off on a CPU, where arithmetic costs more than memory. 16-bit gradients are computed in backward, so that the
    incoming gradient is applied before rounding.
    """
    return (
        inputs.device.type == "cpu"
        and inputs.dtype in (torch.float32, torch.float64)
        and inputs.requires_grad
        and torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
    )


def _register_sum(op: str) -> None:
    backward_op = getattr(torch.ops.fcos_fast, f"{op}_backward")

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        logits, targets, weight, *ctx.numbers, with_grad = inputs
        ctx.save_for_backward(logits, targets, weight)
        ctx.set_materialize_grads(
            False
        )  # avoids a zero gradient of the second output, as large as the logits
        eager = type(output[1]) is Tensor  # a traced graph has no mutable state
        ctx.unit_grad = output[1].detach() if with_grad and eager else None

    def backward(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if grad is None:
            return (None,) * 6
        # The first backward returns the stored gradient, rescaled in place. A second backward recomputes it, as does
        # double backward (whose operator then raises).
        unit_grad, ctx.unit_grad = ctx.unit_grad, None
        if unit_grad is not None and not torch.is_grad_enabled():
            return (unit_grad if grad == 1 else unit_grad.mul_(grad), *(None,) * 5)
        return (backward_op(grad, *ctx.saved_tensors, *ctx.numbers), *(None,) * 5)

    def fake(
        inputs: Tensor, targets: Tensor, weight: Tensor | None, a: float, b: float, with_grad: bool
    ) -> tuple[Tensor, Tensor]:
        total = inputs.new_empty((), dtype=sum_type(inputs.dtype))
        return total, torch.empty_like(inputs) if with_grad else inputs.new_empty(0)

    torch.library.register_autograd(f"fcos_fast::{op}_sum", backward, setup_context=setup_context)
    register_fake(f"{op}_sum")(fake)


def _register(op: str) -> None:
    register_gradient(op, f"{op}_backward", tensors=3, differentiable=[0])
    reject_second_derivative(f"{op}_backward")
    register_fake(op)(lambda inputs, targets, weight, a, b: torch.empty_like(inputs))
    register_fake(f"{op}_backward")(lambda grad, inputs, targets, weight, a, b: torch.empty_like(inputs))
    _register_sum(op)


if cpu_error is None:
    _register("sigmoid_focal_loss")
    _register("sigmoid_focal_loss_star")
