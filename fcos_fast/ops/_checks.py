"""Argument checks of the public operators."""

from __future__ import annotations

import math
import os

import torch
from torch import Tensor

from fcos_fast.assignment import IGNORED, MAX_LABEL, GroundTruth

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


class ArgumentValueError(ValueError, RuntimeError):
    """A ValueError that is also a RuntimeError, which the operators of torch and torchvision raise instead."""


class ArgumentTypeError(TypeError, RuntimeError):
    """A TypeError that is also a RuntimeError, which the operators of torch and torchvision raise instead."""


def check_float(op: str, **tensors: Tensor) -> None:
    """Raise unless every tensor is float32, float64, bfloat16 or float16."""
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            raise ArgumentTypeError(
                f"{op}: {name} has dtype {tensor.dtype}; expected float32, float64, bfloat16 or float16"
            )


def check_integer(op: str, **tensors: Tensor) -> None:
    """Raise unless every tensor has an integer dtype."""
    for name, tensor in tensors.items():
        if tensor.dtype not in INTEGERS:
            raise ArgumentTypeError(
                f"{op}: {name} has dtype {tensor.dtype}; expected an integer dtype, preferably int64 or int32"
            )


def check_same_device(op: str, **tensors: Tensor) -> None:
    """Raise unless all arguments are tensors on the same device. Call this before the other checks."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise ArgumentTypeError(f"{op}: {name} must be a tensor, got {type(tensor).__name__}")
    (first, reference), *others = tensors.items()
    for name, tensor in others:
        if tensor.device != reference.device:
            raise ArgumentValueError(
                f"{op}: {name} is on {tensor.device} and {first} on {reference.device}; expected the same device"
            )


def check_boxes(op: str, expected: str = "(..., 4)", **tensors: Tensor) -> None:
    """Raise unless every tensor has the expected shape: ``(..., 4)``, ``(N, 4)`` or ``(B, N, 4)``."""
    for name, tensor in tensors.items():
        right_ndim = tensor.ndim > 0 if expected == "(..., 4)" else tensor.ndim == expected.count(",") + 1
        if not right_ndim or tensor.shape[-1] != 4:
            raise ArgumentValueError(f"{op}: {name} has shape {tuple(tensor.shape)}; expected {expected}")


def check_one_per_box(op: str, boxes: Tensor, **tensors: Tensor) -> None:
    """Raise unless every tensor has one entry per box of ``boxes`` (..., 4)."""
    for name, tensor in tensors.items():
        if tensor.shape != boxes.shape[:-1]:
            raise ArgumentValueError(
                f"{op}: {name} has shape {tuple(tensor.shape)}; expected {tuple(boxes.shape[:-1])}, one per box"
            )


def check_reduction(op: str, reduction: str) -> None:
    """Raise unless it is ``"none"``, ``"sum"`` or ``"mean"``."""
    if reduction not in ("none", "sum", "mean"):
        raise ArgumentValueError(
            f'{op}: Invalid value for arg reduction: {reduction!r}; expected "none", "sum" or "mean"'
        )


def check_choices(op: str, **choices: tuple[object, tuple[str, ...]]) -> None:
    """Raise unless every value is one of the choices that follow it."""
    for name, (value, known) in choices.items():
        if value not in known:
            raise ArgumentValueError(f"{op}: {name}={value!r}; expected one of {', '.join(known)}")


def check_unit_interval(op: str, **numbers: float) -> None:
    """Raise unless every number is in [0, 1]."""
    for name, number in numbers.items():
        if not 0 <= number <= 1:
            raise ArgumentValueError(f"{op}: {name}={number}; expected a number in [0, 1]")


def check_positive(op: str, **counts: int) -> None:
    """Raise unless every number is a positive integer."""
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, (int, torch.SymInt)):
            raise ArgumentTypeError(f"{op}: {name}={count!r}; expected a positive integer")
        if count < 1:
            raise ArgumentValueError(f"{op}: {name}={count}; expected a positive integer")


def check_focal(op: str, alpha: float, gamma: float) -> None:
    """Raise unless ``alpha`` and ``gamma`` are valid parameters of a focal loss."""
    if not 0 <= gamma < math.inf:
        raise ArgumentValueError(f"{op}: gamma={gamma}; expected a finite number >= 0")
    if not alpha <= 1:
        raise ArgumentValueError(
            f"{op}: alpha={alpha}; expected a number in [0, 1], or a negative one for no weighting"
        )


def check_class_targets(op: str, name: str, targets: Tensor, classes: int) -> None:
    """Raise unless all values are in [-2, C - 1]. Skipped if reading them would synchronize."""
    if targets.numel() == 0 or not checks_values(targets):
        return
    low, high = map(int, torch.aminmax(targets))
    if low < IGNORED or high >= classes:
        raise ArgumentValueError(
            f"{op}: {name} {low if low < IGNORED else high} with {classes} classes; expected 0..{classes - 1}, "
            "-1 (background) or -2 (ignored)"
        )


def checks_values(tensor: Tensor) -> bool:
    """Whether checks may read the values of this tensor.

    True on the CPU. On other devices this synchronizes, so it requires ``FCOS_FAST_CHECK=1``. False while a graph is
    traced or inside a ``torch.func`` transform.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return False
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return False
    return tensor.device.type == "cpu" or os.environ.get("FCOS_FAST_CHECK") == "1"


def check_ground_truth(op: str, gt: GroundTruth) -> None:
    """Raise unless dtypes, shapes and devices are right and, if values may be read, boxes and labels are valid."""
    if gt.boxes.dtype != torch.float32 or gt.boxes.ndim != 2 or gt.boxes.shape[1] != 4:
        raise ArgumentTypeError(
            f"{op}: boxes has dtype {gt.boxes.dtype} and shape {tuple(gt.boxes.shape)}; expected float32 (M, 4), as "
            "returned by GroundTruth.pack"
        )
    for name, tensor in (("labels", gt.labels), ("starts", gt.starts)):
        if tensor.dtype != torch.int64 or tensor.ndim != 1:
            raise ArgumentTypeError(
                f"{op}: {name} has dtype {tensor.dtype} and shape {tuple(tensor.shape)}; expected int64 (N,)"
            )
    if gt.labels.shape[0] != gt.boxes.shape[0]:
        raise ArgumentValueError(f"{op}: got {gt.labels.shape[0]} labels for {gt.boxes.shape[0]} boxes")
    if gt.starts.shape[0] < 2:
        raise ArgumentValueError(
            f"{op}: starts has {gt.starts.shape[0]} entries; expected B + 1, for at least one image"
        )
    check_same_device(op, boxes=gt.boxes, labels=gt.labels, starts=gt.starts)
    if gt.boxes.numel() > 0 and checks_values(gt.boxes):
        _check_boxes_and_labels(op, gt)


def _check_boxes_and_labels(op: str, gt: GroundTruth) -> None:
    used = max(0, int(gt.starts[-1]))  # the rest is padding
    boxes, labels = gt.boxes[:used], gt.labels[:used]
    invalid = ~((boxes[:, 2:] > boxes[:, :2]).all(dim=1))
    if invalid.any():
        row = int(invalid.nonzero()[0])
        raise ArgumentValueError(
            f"{op}: box {row} is {boxes[row].tolist()}; expected x1 < x2 and y1 < y2 in pixels. "
            "Remove boxes with zero area."
        )
    if (labels < 0).any() or (labels > MAX_LABEL).any():
        label = int(labels.min()) if (labels < 0).any() else int(labels.max())
        raise ArgumentValueError(f"{op}: label {label}; expected classes 0..C-1")
