"""Deformable convolution (Dai et al., 2017) and its modulated form (Zhu et al., "Deformable ConvNets v2", 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fcos_fast.models.optional import import_optional

DCN = ("none", "v1", "v2")
"""Values of ``DetectorConfig.dcn``."""


class DeformConv2d(nn.Module):
    """A 3x3 convolution that samples its input at learned offsets, by ``torchvision.ops.deform_conv2d``.

    ``offset`` is an ordinary convolution with 18 channels (y and x of each of nine samples), or with ``modulated`` 27:
    the offsets, then the logits of nine masks, as in official FCOS. It is initialized to zero, which makes the
    convolution a plain one, halved if modulated. ``conv`` contains the weights.

    Offsets and the convolution are computed in float32 (float64 for float64 inputs), also under autocast; the output
    has the dtype of the input.

    Raises:
        ModuleNotFoundError: torchvision is not installed.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        groups: int = 1,
        bias: bool = True,
        modulated: bool = True,
    ) -> None:
        super().__init__()
        self._deform_conv2d = import_optional("torchvision.ops", "deformable convolutions need").deform_conv2d
        self.modulated = modulated
        self.offset = nn.Conv2d(in_channels, 27 if modulated else 18, 3, stride, padding=1)
        nn.init.zeros_(self.offset.weight)
        assert self.offset.bias is not None  # for mypy: nn.Conv2d has one by default
        nn.init.zeros_(self.offset.bias)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, groups=groups, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, ceil(H / stride), ceil(W / stride)), of the same dtype."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            # in bfloat16, an offset of 100 pixels has an error of a quarter of a pixel
            offset = self.offset._conv_forward(x.to(dtype), *_parameters(self.offset, dtype))
            weight, bias = _parameters(self.conv, dtype)
            out = self._deform_conv2d(
                x.to(dtype),
                offset[:, :18],
                weight,
                bias,
                stride=self.conv.stride,
                padding=self.conv.padding,
                mask=offset[:, 18:].sigmoid() if self.modulated else None,
            )
        return out.to(x.dtype)


def _parameters(conv: nn.Conv2d, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    return conv.weight.to(dtype), None if conv.bias is None else conv.bias.to(dtype)
