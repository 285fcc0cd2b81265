"""The three reductions that every loss offers."""

from torch import Tensor


def reduce(loss: Tensor, reduction: str) -> Tensor:
    """Apply ``"none"``, ``"sum"`` or ``"mean"``. The mean of an empty loss is 0, not NaN, and has a gradient."""
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        return loss.mean() if loss.numel() > 0 else loss.sum()
    raise ValueError(f'reduction={reduction!r}; expected "none", "sum" or "mean"')
