"""Checks of arguments, once, at the boundary. Messages say what was given, what is accepted and what to do."""

from __future__ import annotations

import os

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_float(op: str, **tensors: Tensor) -> None:
    """Every tensor is float32, float64, bfloat16 or float16."""
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise TypeError(
                f"{op}: {name} has dtype {tensor.dtype}; expected float32, float64, bfloat16 or float16"
            )


def check_integer(op: str, **tensors: Tensor) -> None:
    """Every tensor has an integer dtype."""
    for name, tensor in tensors.items():
        if tensor.dtype not in INTEGERS:
            raise TypeError(
                f"{op}: {name} has dtype {tensor.dtype}; expected an integer dtype, best int64 or int32"
            )


def check_same_device(op: str, **tensors: Tensor) -> None:
    """All are tensors, on the first one's device. This check stands first."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
    (first, reference), *others = tensors.items()
    for name, tensor in others:
        if tensor.device != reference.device:
            raise ValueError(
                f"{op}: {name} is on {tensor.device} and {first} on {reference.device}; move one of them"
            )


def check_boxes(op: str, **tensors: Tensor) -> None:
    """Every tensor has rows of four."""
    for name, tensor in tensors.items():
        if tensor.ndim == 0 or tensor.shape[-1] != 4:
            raise ValueError(f"{op}: {name} has shape {tuple(tensor.shape)}; expected (..., 4)")


def check_reduction(op: str, reduction: str) -> None:
    """One of the three."""
    if reduction not in ("none", "sum", "mean"):
        raise ValueError(f'{op}: reduction={reduction!r}; expected "none", "sum" or "mean"')


def check_choices(op: str, **choices: tuple[object, tuple[str, ...]]) -> None:
    """Every value is one of those beside it."""
    for name, (value, known) in choices.items():
        if value not in known:
            raise ValueError(f"{op}: {name}={value!r}; expected one of {', '.join(known)}")


def check_unit_interval(op: str, **numbers: float) -> None:
    """Every number is from 0 to 1."""
    for name, number in numbers.items():
        if not 0 <= number <= 1:
            raise ValueError(f"{op}: {name}={number}; expected a number in [0, 1]")


def check_positive(op: str, **counts: int) -> None:
    """Every number is a positive integer."""
    for name, count in counts.items():
        if isinstance(count, float) or count < 1:
            raise ValueError(f"{op}: {name}={count!r}; expected a positive integer")


def checks_values(tensor: Tensor) -> bool:
    """May the values of this tensor be looked at?

    On the host always; on a device that would cost a synchronisation, so only under FCOS_FAST_CHECK=1. Never while a
    graph is traced.
    """
    if torch.compiler.is_compiling() or type(tensor) not in (Tensor, torch.nn.Parameter):
        return False
    return tensor.device.type == "cpu" or os.environ.get("FCOS_FAST_CHECK") == "1"
