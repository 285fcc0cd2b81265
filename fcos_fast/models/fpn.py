"""Feature pyramid P3 to P7 (Lin et al., "Feature Pyramid Networks", 2017), torchvision's parameter names."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fcos_fast.models.backbone import Backbone


class ExtraLevels(nn.Module):
    """P6 and P7: strided convolutions on P5 (as FCOS) or C5 (as RetinaNet)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.p6 = nn.Conv2d(in_channels, channels, 3, 2, padding=1)
        self.p7 = nn.Conv2d(channels, channels, 3, 2, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """P5 or C5 to [P6, P7]."""
        p6 = self.p6(x)
        return [p6, self.p7(F.relu(p6))]


class FPN(nn.Module):
    """Lateral 1x1 convolutions, a nearest-neighbour top-down path, 3x3 output convolutions.

    Args:
        in_channels: channels of C3, C4, C5.
        channels: channels of every level of the pyramid.
        p6_from: ``"p5"`` or ``"c5"``.
    """

    def __init__(self, in_channels: Sequence[int], channels: int = 256, p6_from: str = "p5") -> None:
        super().__init__()
        self.p6_from = p6_from
        self.inner_blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(c, channels, 1)) for c in in_channels)
        self.layer_blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1)) for _ in in_channels
        )
        self.extra_blocks = ExtraLevels(channels if p6_from == "p5" else in_channels[-1], channels)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """[C3, C4, C5] to [P3, P4, P5, P6, P7]."""
        laterals = [block(c) for block, c in zip(self.inner_blocks, features, strict=True)]
        for i in range(len(laterals) - 1, 0, -1):
            size = laterals[i - 1].shape[-2:]
            laterals[i - 1] = laterals[i - 1] + F.interpolate(laterals[i], size=size, mode="nearest")
        pyramid = [block(lateral) for block, lateral in zip(self.layer_blocks, laterals, strict=True)]
        return pyramid + self.extra_blocks(pyramid[-1] if self.p6_from == "p5" else features[-1])


class BackboneWithFPN(nn.Module):
    """A backbone and the pyramid on it."""

    def __init__(self, body: Backbone, channels: int = 256, p6_from: str = "p5") -> None:
        super().__init__()
        self.body = body
        self.fpn = FPN(body.out_channels, channels, p6_from)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) to [P3, ..., P7]: (B, channels, ceil(H / stride), ceil(W / stride))."""
        return self.fpn(self.body(x))
