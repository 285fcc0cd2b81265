"""Comparison of numbers with a reference in the same precision and in float64."""

from __future__ import annotations

import torch
from torch import Tensor

UNIT = {torch.float32: 2**-23, torch.float64: 2**-52, torch.bfloat16: 2**-7, torch.float16: 2**-10}
"""Machine epsilon."""


def assert_as_good_as_torch(
    actual: Tensor, plain: Tensor, exact: Tensor, dtype: torch.dtype, slack: float = 16, terms: float = 0
) -> None:
    """Assert that the error is at most four times that of plain PyTorch in the same precision, plus a few units.

    Args:
        actual: the native result.
        plain: the reference, computed in the precision of the operator.
        exact: the reference in float64.
        dtype: dtype of the result.
        slack: allowed error in units in the last place of the greatest number.
        terms: magnitude of the terms of a sum, which may cancel.
    """
    assert actual.shape == exact.shape
    actual, plain, exact = actual.double(), plain.double(), exact.to(dtype).double()
    counted = exact.isfinite() & plain.isfinite()
    assert not (counted & ~actual.isfinite() & (exact.abs() < 0.99 * torch.finfo(dtype).max)).any(), (
        "not finite"
    )
    undefined = exact.isnan() & plain.isnan()
    assert not (undefined & actual.isfinite()).any(), "finite, but the reference is NaN"
    if counted.any():
        zero = torch.zeros(())
        error = torch.where(counted & actual.isfinite(), (actual - exact).abs(), zero).max()
        peer = torch.where(counted, (plain - exact).abs(), zero).max()
        scale = torch.where(counted, exact.abs(), zero).max().clamp(min=terms)
        if (
            dtype == torch.float64
        ):  # here `exact` has rounding errors too, and terms that cancel are of the order of 1
            scale, slack = scale.clamp(min=1), 16 * slack
        computed = torch.promote_types(dtype, torch.float32)
        # Subnormals may be rounded to the smallest normal number, and then divided by a small factor.
        least = torch.finfo(dtype).tiny + 16 * torch.finfo(computed).tiny
        bound = 4 * peer + slack * UNIT[dtype] * scale + least
        assert error <= bound, f"error {error:.3g}, PyTorch's {peer:.3g}, of {scale:.3g}"
