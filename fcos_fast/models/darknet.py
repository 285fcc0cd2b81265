"""DarkNet19 (Redmon and Farhadi, "YOLO9000", 2016, table 6)."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcos_fast.models.backbone import Backbone, register_backbone
from fcos_fast.models.norm import NORMS, conv_norm
from fcos_fast.models.tensor_order import in_order

SLOPE = 0.1


class ConvNormLeaky(nn.Module):
    """Bias-free convolution, norm and leaky ReLU of slope 0.1."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, norm: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False)
        self.bn = NORMS[norm](out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, out_channels, H, W)."""
        return F.leaky_relu(conv_norm(x, self.conv, self.bn), SLOPE, inplace=True)


def _layer(channels: int, num_convs: int, norm: str) -> nn.Sequential:
    """Max-pool, then 3x3 convolutions to ``channels`` that alternate with 1x1 convolutions to half of them."""
    # ceil_mode: odd sizes as with the strided convolutions of the other backbones
    modules: list[nn.Module] = [nn.MaxPool2d(2, 2, ceil_mode=True)]
    for i in range(num_convs):
        wide, narrow = (channels, channels // 2) if i % 2 == 0 else (channels // 2, channels)
        modules.append(ConvNormLeaky(narrow, wide, 3 if i % 2 == 0 else 1, norm))
    return nn.Sequential(*modules)


@register_backbone("darknet19")
class DarkNet19(Backbone):
    """The 18 convolutions of DarkNet19, without its classifier.

    ``stem`` ends at stride 2, ``layer1`` to ``layer4`` at strides 4, 8, 16 and 32 with 128, 256, 512 and
    1024 channels.

    Args:
        norm: ``"batch"``, ``"frozen"`` or ``"group"``.
    """

    out_channels = (128, 256, 512, 1024)

    def __init__(self, norm: str = "batch") -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvNormLeaky(3, 32, 3, norm), *_layer(64, 1, norm))
        self.layer1 = _layer(128, 3, norm)
        self.layer2 = _layer(256, 3, norm)
        self.layer3 = _layer(512, 5, norm)
        self.layer4 = _layer(1024, 5, norm)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=SLOPE, mode="fan_out", nonlinearity="leaky_relu")

    def stages(self) -> list[list[nn.Module]]:
        """The stem, then layer1 to layer4."""
        return [[self.stem], [self.layer1], [self.layer2], [self.layer3], [self.layer4]]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) to [C2, C3, C4, C5]."""
        c2 = self.layer1(self.stem(x))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return [c2, c3, c4, self.layer4(c4)]


def read_in_order(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a frozen :class:`DarkNet19` from tensors with other names, by their order.

    Implementations nest and name the 18 layers differently, but each layer is the weight of a convolution, then weight,
    bias, running mean and running variance of its batch norm. Tensors after the last layer, such as a classifier, are
    ignored.

    Raises:
        ValueError: a tensor is missing or has another shape; the message names it.
    """
    with torch.device("meta"):
        own = DarkNet19("frozen").state_dict()
    return in_order(tensors, own, "DarkNet19")
