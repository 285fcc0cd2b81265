"""Feature pyramid P2 to P7 (Lin et al., "Feature Pyramid Networks", 2017), torchvision's parameter names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcos_fast.models.backbone import Backbone
from fcos_fast.models.norm import NORMS


class ExtraLevels(nn.Module):
    """P6 and P7: strided convolutions on P5 (FCOS) or C5 (RetinaNet).

    Args:
        in_channels: channels of P5 or C5.
        channels: channels of the pyramid.
        count: 1 for only P6, 2 for both.
    """

    def __init__(self, in_channels: int, channels: int, count: int = 2) -> None:
        super().__init__()
        self.p6 = nn.Conv2d(in_channels, channels, 3, 2, padding=1)
        self.p7 = nn.Conv2d(channels, channels, 3, 2, padding=1) if count == 2 else None

    def forward(self, x: Tensor) -> list[Tensor]:
        """P5 or C5 to [P6, P7]."""
        p6 = self.p6(_two_columns(x))
        return [p6] if self.p7 is None else [p6, self.p7(_two_columns(F.relu(p6)))]


def _two_columns(x: Tensor) -> Tensor:
    """Append a column of zeros to a feature map of width 1. The convolution pads with zeros, so the result is the same.

    On CPUs with AMX, the weight gradient of a strided bfloat16 convolution of width 1 differs from call to call and
    can be NaN (seen with torch 2.14.1). An exported network has no gradient, and reading the width would fix it.
    """
    if torch.compiler.is_exporting() or x.device.type != "cpu":
        return x
    return F.pad(x, (0, 1)) if x.shape[-1] == 1 else x


class FPN(nn.Module):
    """Lateral 1x1 convolutions, a top-down path, 3x3 output convolutions, and levels above P5.

    Args:
        in_channels: channels of the backbone's last feature maps, up to C5.
        channels: channels of every pyramid level.
        p6_from: ``"p5"`` or ``"c5"``: a strided convolution of that map; ``"max_pool"``: every second position of P5,
            as in Faster R-CNN.
        num_extra: number of levels above P5: 0, 1 or 2.
        norm: ``"none"``, or the norm after every lateral and output convolution, which then have no bias.
        relu: whether a ReLU follows those convolutions.
        upsampling: ``"nearest"``, or ``"bilinear"`` as in SimpleAICV.

    Raises:
        ValueError: P7 with ``max_pool``, which no detector has.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        channels: int = 256,
        p6_from: str = "p5",
        num_extra: int = 2,
        norm: str = "none",
        relu: bool = False,
        upsampling: str = "nearest",
    ) -> None:
        super().__init__()
        if p6_from == "max_pool" and num_extra > 1:
            raise ValueError(
                f"FPN: num_extra={num_extra}; p6_from='max_pool' adds only P6; use max_level 5 or 6"
            )
        self.p6_from, self.num_extra, self.upsampling = p6_from, num_extra, upsampling
        self.inner_blocks = nn.ModuleList(_block(c, channels, 1, norm, relu) for c in in_channels)
        self.layer_blocks = nn.ModuleList(_block(channels, channels, 3, norm, relu) for _ in in_channels)
        if num_extra > 0 and p6_from != "max_pool":
            self.extra_blocks = ExtraLevels(
                channels if p6_from == "p5" else in_channels[-1], channels, num_extra
            )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """[..., C5] to [..., P5] and the levels above."""
        laterals = [block(c) for block, c in zip(self.inner_blocks, features, strict=True)]
        for i in range(len(laterals) - 1, 0, -1):
            laterals[i - 1] = laterals[i - 1] + self._upsampled(laterals[i], laterals[i - 1])
        pyramid = [block(lateral) for block, lateral in zip(self.layer_blocks, laterals, strict=True)]
        return pyramid + self._extra(pyramid[-1], features[-1])

    def _upsampled(self, x: Tensor, like: Tensor) -> Tensor:
        size = like.shape[-2:]
        if self.upsampling == "bilinear":
            return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        return F.interpolate(x, size=size, mode="nearest")

    def _extra(self, p5: Tensor, c5: Tensor) -> list[Tensor]:
        if self.num_extra == 0:
            return []
        if self.p6_from == "max_pool":
            return [F.max_pool2d(p5, 1, 2)]
        return self.extra_blocks(p5 if self.p6_from == "p5" else c5)


def _block(in_channels: int, channels: int, kernel_size: int, norm: str, relu: bool) -> nn.Sequential:
    has_norm = norm != "none"
    layers: list[nn.Module] = [
        nn.Conv2d(in_channels, channels, kernel_size, padding=kernel_size // 2, bias=not has_norm)
    ]
    if has_norm:
        layers.append(NORMS[norm](channels))
    if relu:
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)


class BackboneWithFPN(nn.Module):
    """A backbone with a pyramid.

    Args:
        body: the backbone.
        fpn: the pyramid over its last feature maps.
    """

    def __init__(self, body: Backbone, fpn: FPN) -> None:
        super().__init__()
        self.body = body
        self.fpn = fpn

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) to the levels: (B, channels, ceil(H / stride), ceil(W / stride)) each."""
        return self.fpn(self.body(x)[-len(self.fpn.inner_blocks) :])
