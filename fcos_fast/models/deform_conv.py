"""Deformable convolution (Dai et al., 2017) and its modulated form (Zhu et al., "Deformable ConvNets v2", 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

DCN = ("none", "v1", "v2")
"""The kinds of deformable convolution by the name that a configuration gives them."""


class DeformConv2d(nn.Module):
    """A 3x3 convolution that samples its input at learned offsets, by ``torchvision.ops.deform_conv2d``.

    ``offset`` is an ordinary convolution of 18 channels (y and x of each of nine samples), or with ``modulated`` of 27:
    the offsets, then nine masks before their sigmoid, as official FCOS lays them out. It begins at zero, so that at
    first the convolution is the plain one, halved where it is modulated. ``conv`` holds the weights.

    Offsets and the convolution are computed in float32 (float64 for float64 inputs), also under autocast; the output
    has the input's dtype.

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
        try:
            from torchvision.ops import deform_conv2d
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "deformable convolutions need torchvision; pip install torchvision", name="torchvision"
            ) from error
        self._deform_conv2d = deform_conv2d
        self.modulated = modulated
        self.offset = nn.Conv2d(in_channels, 27 if modulated else 18, 3, stride, padding=1)
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)
        self.conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, groups=groups, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, ceil(H / stride), ceil(W / stride)), of the same dtype."""
        dtype = torch.promote_types(x.dtype, torch.float32)
        with torch.autocast(x.device.type, enabled=False):
            # a bfloat16 offset of 100 pixels would be wrong by a quarter of a pixel
            offset = self.offset._conv_forward(
                x.to(dtype), self.offset.weight.to(dtype), self.offset.bias.to(dtype)
            )
            out = self._deform_conv2d(
                x.to(dtype),
                offset[:, :18],
                self.conv.weight.to(dtype),
                None if self.conv.bias is None else self.conv.bias.to(dtype),
                stride=self.conv.stride,
                padding=self.conv.padding,
                mask=offset[:, 18:].sigmoid() if self.modulated else None,
            )
        return out.to(x.dtype)
