"""How near is near enough."""

from __future__ import annotations

import torch
from torch import Tensor

UNIT = {torch.float32: 2**-23, torch.float64: 2**-52, torch.bfloat16: 2**-7, torch.float16: 2**-10}
"""Distance of 1 to the next number."""


def assert_as_good_as_torch(
    actual: Tensor, plain: Tensor, exact: Tensor, dtype: torch.dtype, slack: float = 16, terms: float = 0
) -> None:
    """The error is at most four times that of plain PyTorch in the same precision, and a few units.

    Args:
        actual: the native result.
        plain: the reference computed in the precision of the operator.
        exact: the reference in float64.
        dtype: in which the result is stored.
        slack: units in the last place of the greatest number that are no error.
        terms: magnitude of what is added up, where the sum may cancel to less.
    """
    assert actual.shape == exact.shape
    actual, plain, exact = actual.double(), plain.double(), exact.to(dtype).double()
    counted = exact.isfinite() & plain.isfinite()
    assert not (counted & ~actual.isfinite() & (exact.abs() < 0.99 * torch.finfo(dtype).max)).any(), (
        "not finite"
    )
    undefined = exact.isnan() & plain.isnan()
    assert not (undefined & actual.isfinite()).any(), "a number where there is none"
    if counted.any():
        zero = torch.zeros(())
        error = torch.where(counted & actual.isfinite(), (actual - exact).abs(), zero).max()
        peer = torch.where(counted, (plain - exact).abs(), zero).max()
        scale = torch.where(counted, exact.abs(), zero).max().clamp(min=terms)
        if (
            dtype == torch.float64
        ):  # then `exact` is no more exact: it rounds itself, and what cancels is of the order of 1
            scale, slack = scale.clamp(min=1), 16 * slack
        computed = torch.promote_types(dtype, torch.float32)
        # What is next to the smallest normal number may be rounded to it, and divided by a small factor after that.
        least = torch.finfo(dtype).tiny + 16 * torch.finfo(computed).tiny
        bound = 4 * peer + slack * UNIT[dtype] * scale + least
        assert error <= bound, f"error {error:.3g}, PyTorch's {peer:.3g}, of {scale:.3g}"
