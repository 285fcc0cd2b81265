"""Centerness of a location in its box (Tian et al., "FCOS", 2019, equation 3)."""

import torch
from torch import Tensor


def centerness(ltrb: Tensor) -> Tensor:
    """See :func:`fcos_fast.ops.centerness`."""
    d = ltrb if ltrb.dtype == torch.float64 else ltrb.float()
    left, top, right, bottom = d.unbind(-1)
    shorter = torch.minimum(left, right) * torch.minimum(top, bottom)
    longer = torch.maximum(left, right) * torch.maximum(top, bottom)
    inside = (torch.minimum(left, right) > 0) & (torch.minimum(top, bottom) > 0)
    # The inner where keeps the gradient of sqrt finite at locations that the outer one masks.
    ratio = torch.where(inside, shorter, 1.0) / torch.where(inside, longer, 1.0)
    return torch.where(inside, ratio.sqrt(), 0.0).to(ltrb.dtype)
