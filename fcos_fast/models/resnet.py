"""ResNet (He et al., "Deep Residual Learning for Image Recognition", 2015), torchvision's parameter names."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from fcos_fast.models.backbone import Backbone
from fcos_fast.models.norm import NORMS, conv_norm


class _Block(nn.Module):
    """Base of the residual blocks: the shortcut."""

    expansion: int

    def __init__(self, in_channels: int, out_channels: int, stride: int, norm: str) -> None:
        super().__init__()
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), NORMS[norm](out_channels)
            )

    def shortcut(self, x: Tensor) -> Tensor:
        return x if self.downsample is None else conv_norm(x, *self.downsample)


class BasicBlock(_Block):
    """Two 3x3 convolutions: the block of ResNet 18 and 34."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, norm: str, stride_in_1x1: bool) -> None:
        super().__init__(in_channels, width, stride, norm)
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = NORMS[norm](width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = NORMS[norm](width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, width, ceil(H / stride), ceil(W / stride))."""
        out = F.relu(conv_norm(x, self.conv1, self.bn1), inplace=True)
        out = conv_norm(out, self.conv2, self.bn2)
        out += self.shortcut(x)
        return F.relu(out, inplace=True)


class Bottleneck(_Block):
    """1x1, 3x3, 1x1 convolutions: the block of ResNet 50, 101 and 152.

    The stride is in the 3x3 convolution, as torchvision has it, or with ``stride_in_1x1`` in the first
    1x1, as the paper and the weights of Caffe and Detectron have it.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, norm: str, stride_in_1x1: bool) -> None:
        super().__init__(in_channels, width * self.expansion, stride, norm)
        stride1, stride2 = (stride, 1) if stride_in_1x1 else (1, stride)
        self.conv1 = nn.Conv2d(in_channels, width, 1, stride1, bias=False)
        self.bn1 = NORMS[norm](width)
        self.conv2 = nn.Conv2d(width, width, 3, stride2, padding=1, bias=False)
        self.bn2 = NORMS[norm](width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = NORMS[norm](width * self.expansion)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, 4 * width, ceil(H / stride), ceil(W / stride))."""
        out = F.relu(conv_norm(x, self.conv1, self.bn1), inplace=True)
        out = F.relu(conv_norm(out, self.conv2, self.bn2), inplace=True)
        out = conv_norm(out, self.conv3, self.bn3)
        out += self.shortcut(x)
        return F.relu(out, inplace=True)


class ResNet(Backbone):
    """The convolutional part of a ResNet.

    Loads torchvision's state dicts: the classifier ``fc.*`` of an ImageNet checkpoint is left out.

    Args:
        block: kind of residual block.
        depths: number of blocks in layer1 to layer4.
        norm: ``"batch"``, ``"frozen"`` or ``"group"``.
        stride_in_1x1: see :class:`Bottleneck`.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        norm: str = "batch",
        stride_in_1x1: bool = False,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = NORMS[norm](64)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)

        channels = 64
        for i, depth in enumerate(depths):
            width, blocks = 64 << i, []
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(block(channels, width, stride, norm, stride_in_1x1))
                channels = width * block.expansion
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        self.out_channels = tuple(width * block.expansion for width in (128, 256, 512))

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self) -> list[list[nn.Module]]:
        """The stem, then layer1 to layer4."""
        return [[self.conv1, self.bn1], [self.layer1], [self.layer2], [self.layer3], [self.layer4]]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) to [C3, C4, C5]."""
        x = self.maxpool(F.relu(conv_norm(x, self.conv1, self.bn1), inplace=True))
        c3 = self.layer2(self.layer1(x))
        c4 = self.layer3(c3)
        return [c3, c4, self.layer4(c4)]

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        for name in ("fc.weight", "fc.bias"):
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *args)
