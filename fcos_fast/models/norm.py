"""Normalisation layers of the backbones."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcos_fast import ops
from fcos_fast.models.config import GROUPS


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and affine parameters are buffers: an affine map per channel.

    Keys and values as in ``torchvision.ops.FrozenBatchNorm2d``. The output has the input's dtype, also
    where the buffers are float32 and autocast made the activations bfloat16.
    """

    def __init__(self, channels: int, eps: float = 1e-5):
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) of any floating dtype to the same shape and dtype."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        # A checkpoint of an ordinary batch norm also counts its batches.
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Size and eps, as the other norms print them."""
        return f"{self.weight.numel()}, eps={self.eps}"


class GroupNormReLU(nn.GroupNorm):
    """Group norm and the ReLU after it as one operator; parameters and keys of ``nn.GroupNorm``.

    The output has the input's dtype and memory format, also where the parameters are float32 and autocast made the
    activations bfloat16.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) of any floating dtype to the same shape and dtype."""
        return ops.group_norm_relu(x, self.num_groups, self.weight, self.bias, self.eps)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "frozen": FrozenBatchNorm2d,
    "group": lambda channels: nn.GroupNorm(GROUPS, channels),
}
"""The norms of a backbone, by the name that ``DetectorConfig.norm`` gives them."""


def folded(conv: nn.Conv2d, norm: nn.Module, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Weight and bias of the one convolution that ``norm(conv(x))`` is, where the norm's statistics do not change.

    Autograd carries the norm's scale to the gradient of ``conv.weight``.

    Args:
        conv: with or without a bias.
        norm: whatever has ``running_mean``, ``running_var`` and ``eps``, and ``weight`` and ``bias`` or None: a frozen
            batch norm of this project or of torchvision, ``nn.BatchNorm2d`` in evaluation mode.
        dtype: to compute in; by default that of the layers.
    """
    scale = (norm.running_var.to(dtype) + norm.eps).rsqrt()  # (C,)
    if norm.weight is not None:
        scale = norm.weight * scale
    shift = -norm.running_mean * scale if conv.bias is None else (conv.bias - norm.running_mean) * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    return conv.weight * scale[:, None, None, None], shift


def conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.Module) -> Tensor:
    """``norm(conv(x))``; a frozen norm is folded, which leaves no pass over the activations, forward or backward."""
    if not isinstance(norm, FrozenBatchNorm2d) or not isinstance(conv, nn.Conv2d):
        return norm(conv(x))
    return conv._conv_forward(x, *folded(conv, norm))
