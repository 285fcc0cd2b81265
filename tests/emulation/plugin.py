"""For ``pytest -p tests.emulation.plugin``: replaces the CPU operators by the emulated CUDA operators."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from typing import Any

import torch

from fcos_fast import _extension
from fcos_fast.ops import focal_loss
from tests.ops.arguments import valid_arguments


def outcome(name: str) -> tuple[Any, ...]:
    """Results of the operator for its valid arguments, and the arguments, which it may modify."""
    arguments = valid_arguments()[name]
    return getattr(torch.ops.fcos_fast, name)(*arguments), arguments


of_cpu = {name: outcome(name) for name in valid_arguments()}
"""Results of the CPU operators, before they are replaced."""

torch.ops.load_library(os.environ["EMULATED_CUDA"])
_emulation = ctypes.CDLL(os.environ["EMULATED_CUDA"])
_emulation.emulation_watch_tensors()
focal_loss._in_one_pass = lambda inputs: False  # as on a GPU
_extension.is_on_gpu = lambda tensor: True


@contextlib.contextmanager
def captured() -> Iterator[None]:
    """Emulate graph capture: operators that synchronize fail inside."""
    _emulation.emulation_capture(True)
    try:
        yield
    finally:
        _emulation.emulation_capture(False)
