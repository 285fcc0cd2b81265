"""Random inputs for fuzzing, generated from a seed: a case is small, prints on one line and can be replayed."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
KINDS = ("plain", "steps", "wide", "special")
FORMATS = ("contiguous", "channels_last", "strided", "transposed", "shifted")

dtypes = st.sampled_from(sorted(DTYPES))
kinds = st.sampled_from(KINDS)
formats = st.sampled_from(FORMATS)
seeds = st.integers(0, 2**31 - 1)
sides = st.integers(0, 9)
threads = st.sampled_from((1, 3))


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbers(seed: int, shape: tuple[int, ...], kind: str, dtype: torch.dtype = torch.float64) -> Tensor:
    """Ordinary numbers, multiples of 1/8 (many equal), numbers of any magnitude, or some special values."""
    g = generator(seed)
    x = torch.randn(shape, generator=g, dtype=torch.float64) * 3
    if kind == "steps":
        x = (x * 8).round() / 8
    elif kind == "wide":
        x = x * 10.0 ** (torch.rand(shape, generator=g, dtype=torch.float64) * 16 - 8)
    elif kind == "special":
        limits = torch.finfo(dtype)
        odd = [
            0.0,
            -0.0,
            torch.inf,
            -torch.inf,
            torch.nan,
            limits.max,
            -limits.max,
            limits.tiny,
            limits.tiny / 8,
        ]
        chosen = torch.tensor(odd, dtype=torch.float64)[torch.randint(len(odd), shape, generator=g)]
        x = torch.where(torch.rand(shape, generator=g) < 0.2, chosen, x)
    return x.to(dtype)


def classes(seed: int, shape: tuple[int, ...], count: int, lowest: int = -2) -> Tensor:
    """Class targets; -1 is background, -2 ignored."""
    return torch.randint(lowest, max(count, lowest + 1), shape, generator=generator(seed + 1))


def boxes(seed: int, shape: tuple[int, ...], kind: str, dtype: torch.dtype = torch.float64) -> Tensor:
    """(*shape, 4) xyxy with positive area, many overlapping; "steps" are on a grid, so that IoUs are equal."""
    g = generator(seed)
    size = {"plain": 40.0, "steps": 12.0, "wide": 4000.0, "special": 40.0}[kind]
    corner, sides = (torch.rand((*shape, 2), generator=g, dtype=torch.float64) for _ in range(2))
    corner, sides = corner * size - size / 4, sides * size + 0.5
    if kind == "steps":
        corner, sides = corner.round(), sides.round().clamp(min=1)
    return torch.cat((corner, corner + sides), dim=-1).to(dtype)


def lay(x: Tensor, memory_format: str) -> Tensor:
    """Copy to the given memory format if the shape allows."""
    if memory_format == "channels_last" and x.ndim == 4:
        return x.contiguous(memory_format=torch.channels_last)
    if memory_format == "strided":
        return torch.stack((x, x), dim=-1)[..., 0]
    if memory_format == "transposed" and x.ndim >= 2:
        return x.mT.contiguous().mT
    if memory_format == "shifted":  # by one element: misaligned
        return torch.cat((x.new_zeros(1), x.flatten()))[1:].view(x.shape)
    return x.contiguous()
