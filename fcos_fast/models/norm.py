"""Normalization layers of the backbones, and their folding into convolutions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcos_fast import ops
from fcos_fast.models.config import GROUPS


class FrozenBatchNorm2d(nn.Module):
    """Batch norm whose statistics and affine parameters are buffers: an affine map per channel.

    Keys and values as in ``torchvision.ops.FrozenBatchNorm2d``. The output has the dtype of the input, also under
    autocast with float32 buffers.
    """

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) of any floating dtype to the same shape and dtype."""
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Checkpoints of ordinary batch norms also count batches.
        state_dict.pop(prefix + "num_batches_tracked", None)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Channels and eps, for printing."""
        return f"{self.weight.numel()}, eps={self.eps}"


class GroupNormReLU(nn.GroupNorm):
    """Group norm and ReLU as one operator; parameters and keys of ``nn.GroupNorm``.

    The output has the dtype and memory format of the input, also under autocast with float32 parameters.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, ...) of any floating dtype to the same shape and dtype."""
        return ops.group_norm_relu(x, self.num_groups, self.weight, self.bias, self.eps)


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "batch": nn.BatchNorm2d,
    "frozen": FrozenBatchNorm2d,
    "group": lambda channels: nn.GroupNorm(GROUPS, channels),
}
"""Value of ``DetectorConfig.norm`` to a norm of the given number of channels."""


class BatchNorm(Protocol):
    """A batch norm with constant statistics: a frozen one of this project or torchvision, or one in evaluation mode."""

    running_mean: Tensor
    running_var: Tensor
    weight: Tensor | None
    bias: Tensor | None
    eps: float


def folded(
    conv: nn.Conv2d, norm: BatchNorm | nn.Module, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that equals ``norm(conv(x))``.

    Differentiable: the gradient of ``conv.weight`` includes the norm's scale.

    Args:
        conv: with or without a bias.
        norm: a :class:`BatchNorm`.
        dtype: dtype to compute in; by default that of the layers.
    """
    norm = cast(BatchNorm, norm)  # the class of an nn.Module does not show its buffers
    scale = (norm.running_var.to(dtype) + norm.eps).rsqrt()  # (C,)
    if norm.weight is not None:
        scale = norm.weight * scale
    shift = -norm.running_mean * scale if conv.bias is None else (conv.bias - norm.running_mean) * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    return conv.weight * scale[:, None, None, None], shift


def conv_norm(x: Tensor, conv: nn.Module, norm: nn.Module) -> Tensor:
    """``norm(conv(x))``; a frozen norm is folded, which saves a pass over the activations, forward and backward."""
    if not isinstance(norm, FrozenBatchNorm2d) or not isinstance(conv, nn.Conv2d):
        return norm(conv(x))
    return conv._conv_forward(x, *folded(conv, norm))
