"""The transforms of Winograd's convolution, which :mod:`fcos_fast.models.winograd` uses; only for CPUs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fcos_fast._extension import cpu_error, use_native
from fcos_fast.ops._register import register_fake
from fcos_fast.reference import winograd as reference

NAMES = ("winograd_input", "winograd_gradient", "winograd_output")


def transforms(x: Tensor) -> Any:
    """The namespace of ``NAMES``: native, or :mod:`fcos_fast.reference.winograd`, which also serves float64."""
    native = x.dtype == torch.float32 and use_native(x)
    return torch.ops.fcos_fast if native else reference


if cpu_error is None:
    for _name in NAMES:
        register_fake(_name)(lambda *args: None)  # they write to an argument
