"""Device, precision and engine of a network.

The command line imports this before torch, which takes seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["auto", "float32", "bfloat16"]

EngineName = Literal["default", "auto", "torch", "onnxruntime", "openvino"]
"""What runs a detector; ``default`` is torch for a checkpoint, and the runtime of its format for an exported file."""


def choose_precision(
    precision: Precision | Literal["float16"], device: torch.device
) -> tuple[torch.dtype, str]:
    """The dtype of the convolutions for ``precision`` on ``device``, and the reason in words.

    ``auto`` is bfloat16 if the hardware multiplies it (CUDA from compute capability 8.0, CPUs with AVX512-BF16 or AMX),
    else float32.
    """
    import torch

    if precision != "auto":
        return getattr(torch, precision), "as requested"
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
    """Autocast to ``dtype``; disabled for float32."""
    import torch

    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16)


def choose_device(name: str) -> torch.device:
    """The device called ``name``; ``auto`` is CUDA if available, else the CPU.

    Raises:
        ValueError: this machine or this torch has no such device.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"device {name!r} is not available here; use auto, cpu or, with a GPU, cuda"
        ) from error
    return device
