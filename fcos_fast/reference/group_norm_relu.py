"""Group normalization (Wu and He, "Group Normalization", 2018) followed by ReLU."""

import torch
import torch.nn.functional as F
from torch import Tensor


def group_norm_relu(
    x: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """See :func:`fcos_fast.ops.group_norm_relu`."""
    batch, channels = x.shape[:2]
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    groups = wide.reshape(batch, num_groups, -1 if x.numel() else 0)
    mean = groups.mean(dim=2, keepdim=True)  # (B, G, 1)
    variance = (groups - mean).square().mean(dim=2, keepdim=True)

    def per_channel(numbers: Tensor) -> Tensor:  # (B or 1, G or C, 1) to (B or 1, C, 1, ...)
        numbers = numbers.to(wide.dtype).repeat_interleave(channels // numbers.shape[1], dim=1)
        return numbers.reshape(-1, channels, *(1,) * (x.ndim - 2))

    y = (wide - per_channel(mean)) * per_channel((variance + eps).rsqrt())
    if weight is not None:
        y = y * per_channel(weight[None])
    if bias is not None:
        y = y + per_channel(bias[None])
    return F.relu(y).to(x.dtype)
