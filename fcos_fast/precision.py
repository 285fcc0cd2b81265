"""Where, and in which precision, a network runs.

Imported by the command line before torch is, which takes seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "float32", "bfloat16"]


def choose_precision(precision: Precision, device: torch.device) -> tuple[torch.dtype, str]:
    """What ``precision`` means on ``device``: the dtype of the convolutions, and why, for the user.

    ``auto`` is bfloat16 where the machine multiplies it in hardware: CUDA from compute capability 8.0, CPUs with
    AVX512-BF16 or AMX; and float32 elsewhere.
    """
    import torch

    if precision != "auto":
        return getattr(torch, precision), "as asked for"
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        reason = f"compute capability {major}.{minor}"
        return (torch.bfloat16 if major >= 8 else torch.float32), reason
    if device.type == "cpu":
        if torch.cpu._is_amx_tile_supported():
            return torch.bfloat16, "this CPU has AMX"
        if torch.cpu._is_avx512_bf16_supported():
            return torch.bfloat16, "this CPU has AVX512-BF16"
        return torch.float32, "this CPU has neither AVX512-BF16 nor AMX"
    return torch.float32, f"not known to be fast on {device.type}"


def autocast(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """Autocast to ``dtype``; float32 switches it off."""
    import torch

    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def choose_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is CUDA where there is one, else the CPU."""
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {name!r} is not usable here; take auto, cpu or, with a GPU, cuda"
        ) from error
    return device
