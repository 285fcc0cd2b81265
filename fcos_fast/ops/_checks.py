"""Checks of arguments, once, at the boundary. Messages say what was given, what is accepted and what to do."""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor

from fcos_fast.assignment import IGNORED, MAX_LABEL, GroundTruth

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class ArgumentValueError(ValueError, RuntimeError):
    """A ValueError, and also the RuntimeError that the operators of torch and torchvision raise in its place."""


class ArgumentTypeError(TypeError, RuntimeError):
    """A TypeError, and also the RuntimeError that the operators of torch and torchvision raise in its place."""


def check_float(op: str, **tensors: Tensor) -> None:
    """Every tensor is float32, float64, bfloat16 or float16."""
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise ArgumentTypeError(
                f"{op}: {name} has dtype {tensor.dtype}; expected float32, float64, bfloat16 or float16"
            )


def check_integer(op: str, **tensors: Tensor) -> None:
    """Every tensor has an integer dtype."""
    for name, tensor in tensors.items():
        if tensor.dtype not in INTEGERS:
            raise ArgumentTypeError(
                f"{op}: {name} has dtype {tensor.dtype}; expected an integer dtype, best int64 or int32"
            )


def check_same_device(op: str, **tensors: Tensor) -> None:
    """All are tensors, on the first one's device. This check stands first."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise ArgumentTypeError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
    (first, reference), *others = tensors.items()
    for name, tensor in others:
        if tensor.device != reference.device:
            raise ArgumentValueError(
                f"{op}: {name} is on {tensor.device} and {first} on {reference.device}; move one of them"
            )


def check_boxes(op: str, **tensors: Tensor) -> None:
    """Every tensor has rows of four."""
    for name, tensor in tensors.items():
        if tensor.ndim == 0 or tensor.shape[-1] != 4:
            raise ArgumentValueError(f"{op}: {name} has shape {tuple(tensor.shape)}; expected (..., 4)")


def check_reduction(op: str, reduction: str) -> None:
    """One of the three."""
    if reduction not in ("none", "sum", "mean"):
        raise ArgumentValueError(
            f'{op}: Invalid value for arg reduction: {reduction!r}; expected "none", "sum" or "mean"'
        )


def check_choices(op: str, **choices: tuple[object, tuple[str, ...]]) -> None:
    """Every value is one of those beside it."""
    for name, (value, known) in choices.items():
        if value not in known:
            raise ArgumentValueError(f"{op}: {name}={value!r}; expected one of {', '.join(known)}")


def check_unit_interval(op: str, **numbers: float) -> None:
    """Every number is from 0 to 1."""
    for name, number in numbers.items():
        if not 0 <= number <= 1:
            raise ArgumentValueError(f"{op}: {name}={number}; expected a number in [0, 1]")


def check_positive(op: str, **counts: int) -> None:
    """Every number is a positive integer."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, (int, torch.SymInt)):
            raise ArgumentTypeError(f"{op}: {name}={count!r}; expected a positive integer")
        if count < 1:
            raise ArgumentValueError(f"{op}: {name}={count}; expected a positive integer")


def check_focal(op: str, alpha: float, gamma: float) -> None:
    """The numbers of a focal loss."""
    if not 0 <= gamma < math.inf:
        raise ArgumentValueError(f"{op}: gamma={gamma}; expected at least 0")
    if not alpha <= 1:
        raise ArgumentValueError(f"{op}: alpha={alpha}; expected 0..1, or negative for no weighting")


def check_class_targets(op: str, name: str, targets: Tensor, classes: int) -> None:
    """Values of -2 to C - 1, where they may be looked at."""
    if targets.numel() == 0 or not checks_values(targets):
        return
    low, high = map(int, torch.aminmax(targets))
    if low < IGNORED or high >= classes:
        raise ArgumentValueError(
            f"{op}: {name} {low if low < IGNORED else high} with {classes} classes; expected 0..{classes - 1}, "
            "-1 (background) or -2 (ignored)"
        )


def checks_values(tensor: Tensor) -> bool:
    """May the values of this tensor be looked at?

    On the host always; on a device that would cost a synchronisation, so only under FCOS_FAST_CHECK=1. Never while a
    graph is traced or torch.func transforms the caller.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return False
    return tensor.device.type == "cpu" or os.environ.get("FCOS_FAST_CHECK") == "1"


def check_ground_truth(op: str, gt: GroundTruth) -> None:
    """Dtypes, shapes, one device; where values may be looked at, also that boxes have an area and labels are right."""
    if gt.boxes.dtype != torch.float32 or gt.boxes.ndim != 2 or gt.boxes.shape[1] != 4:
        raise ArgumentTypeError(
            f"{op}: boxes are {gt.boxes.dtype} of shape {tuple(gt.boxes.shape)}; expected float32 (M, 4), as "
            "GroundTruth.pack makes them"
        )
    for name, tensor in (("labels", gt.labels), ("starts", gt.starts)):
        if tensor.dtype != torch.int64 or tensor.ndim != 1:
            raise ArgumentTypeError(
                f"{op}: {name} are {tensor.dtype} of shape {tuple(tensor.shape)}; expected int64, one axis"
            )
    if gt.labels.shape[0] != gt.boxes.shape[0]:
        raise ArgumentValueError(f"{op}: {gt.labels.shape[0]} labels for {gt.boxes.shape[0]} boxes")
    if gt.starts.shape[0] < 2:
        raise ArgumentValueError(
            f"{op}: starts has {gt.starts.shape[0]} entries; expected B + 1 of at least one image"
        )
    check_same_device(op, boxes=gt.boxes, labels=gt.labels, starts=gt.starts)
    if gt.boxes.numel() > 0 and checks_values(gt.boxes):
        _check_boxes_and_labels(op, gt)


def _check_boxes_and_labels(op: str, gt: GroundTruth) -> None:
    used = max(0, int(gt.starts[-1]))  # what follows is padding
    boxes, labels = gt.boxes[:used], gt.labels[:used]
    wrong = ~((boxes[:, 2:] > boxes[:, :2]).all(dim=1))
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ArgumentValueError(
            f"{op}: box {row} is {boxes[row].tolist()}; expected x1 < x2 and y1 < y2 in pixels. "
            "Leave boxes without an area out."
        )
    if (labels < 0).any() or (labels > MAX_LABEL).any():
        wrong = int(labels.min()) if (labels < 0).any() else int(labels.max())
        raise ArgumentValueError(f"{op}: label {wrong}; expected classes 0..C-1")
