"""ResNet (He et al., "Deep Residual Learning for Image Recognition", 2015), torchvision's parameter names.

And ResNeXt (Xie et al., "Aggregated Residual Transformations for Deep Neural Networks", 2016), and the wide ResNets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fcos_fast.models.backbone import Backbone, register_backbone
from fcos_fast.models.deform_conv import DCN, DeformConv2d
from fcos_fast.models.norm import NORMS, conv_norm
from fcos_fast.suggest import unknown_name


class _Block(nn.Module):
    """Base class of the residual blocks: the shortcut."""

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


def _conv3x3(channels: int, stride: int, groups: int, dcn: str) -> nn.Module:
    if dcn == "none":
        return nn.Conv2d(channels, channels, 3, stride, padding=1, groups=groups, bias=False)
    return DeformConv2d(channels, channels, stride, groups=groups, bias=False, modulated=dcn == "v2")


class BasicBlock(_Block):
    """Two 3x3 convolutions: the block of ResNet 18 and 34. With ``dcn`` the second is deformable."""

    expansion = 1

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        norm: str,
        stride_in_1x1: bool,
        groups: int = 1,
        width_per_group: int = 64,
        dcn: str = "none",
    ) -> None:
        if (groups, width_per_group) != (1, 64):
            raise ValueError(
                "BasicBlock: groups and width_per_group are options of Bottleneck; use that block"
            )
        super().__init__(in_channels, width, stride, norm)
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, padding=1, bias=False)
        self.bn1 = NORMS[norm](width)
        self.conv2 = _conv3x3(width, 1, 1, dcn)
        self.bn2 = NORMS[norm](width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, width, ceil(H / stride), ceil(W / stride))."""
        out = F.relu(conv_norm(x, self.conv1, self.bn1), inplace=True)
        out = conv_norm(out, self.conv2, self.bn2)
        out += self.shortcut(x)
        return F.relu(out, inplace=True)


class Bottleneck(_Block):
    """1x1, 3x3, 1x1 convolutions: the block of ResNet 50, 101 and 152, and of ResNeXt.

    The stride is in the 3x3 convolution, as in torchvision, or with ``stride_in_1x1`` in the first 1x1, as in the paper
    and in weights of Caffe and Detectron. With ``dcn`` the 3x3 is deformable. In ResNeXt it has ``groups``, and
    ``groups * width_per_group`` channels instead of a ResNet's 64.
    """

    expansion = 4

    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        norm: str,
        stride_in_1x1: bool,
        groups: int = 1,
        width_per_group: int = 64,
        dcn: str = "none",
    ) -> None:
        super().__init__(in_channels, width * self.expansion, stride, norm)
        stride1, stride2 = (stride, 1) if stride_in_1x1 else (1, stride)
        inner = width * width_per_group // 64 * groups
        self.conv1 = nn.Conv2d(in_channels, inner, 1, stride1, bias=False)
        self.bn1 = NORMS[norm](inner)
        self.conv2 = _conv3x3(inner, stride2, groups, dcn)
        self.bn2 = NORMS[norm](inner)
        self.conv3 = nn.Conv2d(inner, width * self.expansion, 1, bias=False)
        self.bn3 = NORMS[norm](width * self.expansion)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) to (B, 4 * width, ceil(H / stride), ceil(W / stride))."""
        out = F.relu(conv_norm(x, self.conv1, self.bn1), inplace=True)
        out = F.relu(conv_norm(out, self.conv2, self.bn2), inplace=True)
        out = conv_norm(out, self.conv3, self.bn3)
        out += self.shortcut(x)
        return F.relu(out, inplace=True)


@register_backbone("wide_resnet101_2", block=Bottleneck, depths=(3, 4, 23, 3), width_per_group=128)
@register_backbone("wide_resnet50_2", block=Bottleneck, depths=(3, 4, 6, 3), width_per_group=128)
@register_backbone("resnext101_64x4d", block=Bottleneck, depths=(3, 4, 23, 3), groups=64, width_per_group=4)
@register_backbone("resnext101_32x8d", block=Bottleneck, depths=(3, 4, 23, 3), groups=32, width_per_group=8)
@register_backbone("resnext50_32x4d", block=Bottleneck, depths=(3, 4, 6, 3), groups=32, width_per_group=4)
@register_backbone("resnet152", block=Bottleneck, depths=(3, 8, 36, 3))
@register_backbone("resnet101", block=Bottleneck, depths=(3, 4, 23, 3))
@register_backbone("resnet50", block=Bottleneck, depths=(3, 4, 6, 3))
@register_backbone("resnet34", block=BasicBlock, depths=(3, 4, 6, 3))
@register_backbone("resnet18", block=BasicBlock, depths=(2, 2, 2, 2))
class ResNet(Backbone):
    """The convolutional part of a ResNet or ResNeXt.

    Loads torchvision's state dicts of ImageNet models and ignores their classifier ``fc.*``.

    Args:
        block: kind of residual block.
        depths: number of blocks in layer1 to layer4.
        norm: ``"batch"``, ``"frozen"`` or ``"group"``.
        stride_in_1x1, groups, width_per_group: see :class:`Bottleneck`.
        dcn: ``"v1"`` or ``"v2"``: deformable convolutions (:class:`DeformConv2d`) in the stages ``dcn_stages``;
            ``"none"``.
        dcn_stages: some of 2 to 5, the stages of C2 to C5.

    Raises:
        ValueError: an unknown ``dcn`` or stage.
    """

    UNUSED_KEYS = ("fc.",)
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        norm: str = "batch",
        stride_in_1x1: bool = False,
        groups: int = 1,
        width_per_group: int = 64,
        dcn: str = "none",
        dcn_stages: Sequence[int] = (3, 4, 5),
    ) -> None:
        super().__init__()
        if dcn not in DCN:
            raise unknown_name("dcn", dcn, DCN)
        if not set(dcn_stages) <= {2, 3, 4, 5}:
            raise ValueError(f"ResNet: dcn_stages={tuple(dcn_stages)}; expected some of 2, 3, 4, 5")
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = NORMS[norm](64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)

        channels = 64
        for i, depth in enumerate(depths):
            width, blocks = 64 << i, list[nn.Module]()
            for j in range(depth):
                stride = 2 if i > 0 and j == 0 else 1
                deformable = dcn if i + 2 in dcn_stages else "none"
                blocks.append(
                    block(channels, width, stride, norm, stride_in_1x1, groups, width_per_group, deformable)
                )
                channels = width * block.expansion
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
        e = block.expansion
        self.out_channels = (64 * e, 128 * e, 256 * e, 512 * e)

        offsets = {module.offset for module in self.modules() if isinstance(module, DeformConv2d)}
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module not in offsets:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self) -> list[list[nn.Module]]:
        """The stem, then layer1 to layer4."""
        return [[self.conv1, self.bn1], [self.layer1], [self.layer2], [self.layer3], [self.layer4]]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) to [C2, C3, C4, C5]."""
        c2 = self.layer1(self.maxpool(self.relu(conv_norm(x, self.conv1, self.bn1))))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return [c2, c3, c4, self.layer4(c4)]
