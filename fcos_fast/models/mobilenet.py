"""MobileNetV2 (Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018), torchvision's names."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fcos_fast.models.backbone import Backbone, register_backbone
from fcos_fast.models.config import GROUPS
from fcos_fast.models.norm import NORMS, conv_norm

BLOCKS = (
    # expansion, channels, blocks, stride of the first
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
"""Table 2 of the paper."""

ENDS = (1, 3, 6, 13, 17)
"""Index in ``features`` of the last block of each stage."""


class ConvNormReLU6(nn.Sequential):
    """Bias-free convolution, norm and ReLU6."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        norm: str,
        stride: int = 1,
        groups: int = 1,
    ) -> None:
        conv = nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding=kernel_size // 2,
            groups=groups,
            bias=False,
        )
        super().__init__(conv, NORMS[norm](out_channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        conv, norm = self
        return F.relu6(conv_norm(x, conv, norm), inplace=True)


class InvertedResidual(nn.Module):
    """1x1 convolution to more channels, depthwise 3x3, linear 1x1 to fewer channels."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int, norm: str) -> None:
        super().__init__()
        width = in_channels * expansion
        widen = [ConvNormReLU6(in_channels, width, 1, norm)] if expansion != 1 else []
        self.conv = nn.Sequential(
            *widen,
            ConvNormReLU6(width, width, 3, norm, stride, groups=width),
            nn.Conv2d(width, out_channels, 1, bias=False),
            NORMS[norm](out_channels),
        )
        self.is_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, ceil(H / stride), ceil(W / stride))."""
        out = x
        *layers, conv, norm = self.conv
        for layer in layers:
            out = layer(out)
        out = conv_norm(out, conv, norm)
        return x + out if self.is_residual else out


@register_backbone("mobilenet_v2")
class MobileNetV2(Backbone):
    """The 17 blocks of MobileNetV2. Ignores the last convolution and the classifier in torchvision's state dicts.

    Args:
        norm: ``"batch"`` or ``"frozen"``; group norm is impossible, its channels are not multiples of the groups.

    Raises:
        ValueError: ``norm="group"``.
    """

    out_channels = (24, 32, 96, 320)
    UNUSED_KEYS = ("features.18.", "classifier.")

    def __init__(self, norm: str = "batch") -> None:
        super().__init__()
        if norm == "group":
            raise ValueError(
                f"mobilenet_v2: its channels do not divide into {GROUPS} groups; use norm batch or frozen"
            )
        layers: list[nn.Module] = [ConvNormReLU6(3, 32, 3, norm, stride=2)]
        channels = 32
        for expansion, width, blocks, first_stride in BLOCKS:
            for i in range(blocks):
                stride = first_stride if i == 0 else 1
                layers.append(InvertedResidual(channels, width, stride, expansion, norm))
                channels = width
        self.features = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def stages(self) -> list[list[nn.Module]]:
        """The blocks up to each of :data:`ENDS`."""
        starts = (0, *(end + 1 for end in ENDS))
        return [list(self.features[start : end + 1]) for start, end in zip(starts, ENDS, strict=False)]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) to [C2, C3, C4, C5]."""
        maps = []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in ENDS:
                maps.append(x)
        return maps[1:]
