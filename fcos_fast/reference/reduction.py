"""The three reductions that every loss offers."""

from torch import Tensor


def reduce(loss: Tensor, reduction: str) -> Tensor:
    """``"none"``, ``"sum"`` or ``"mean"`` of ``loss``; the mean of nothing is 0, so that its graph stays alive."""
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        return loss.mean() if loss.numel() > 0 else loss.sum()
    raise ValueError(f'reduction={reduction!r}; expected "none", "sum" or "mean"')
