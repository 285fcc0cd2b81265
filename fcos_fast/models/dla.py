"""DLA-34 (Yu et al., "Deep Layer Aggregation", 2017), the parameter names of its authors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fcos_fast.models.backbone import Backbone, register_backbone
from fcos_fast.models.config import GROUPS
from fcos_fast.models.norm import NORMS, conv_norm

CHANNELS = (16, 32, 64, 128, 256, 512)
DEPTHS = (1, 1, 1, 2, 2, 1)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a residual from outside."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = NORMS[norm](channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = NORMS[norm](channels)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """(B, in_channels, H, W) and a residual to (B, channels, ceil(H / stride), ceil(W / stride))."""
        out = F.relu(conv_norm(x, self.conv1, self.bn1), inplace=True)
        out = conv_norm(out, self.conv2, self.bn2)
        out += residual
        return F.relu(out, inplace=True)


class Root(nn.Module):
    """A 1x1 convolution over the concatenated outputs of a tree."""

    def __init__(self, in_channels: int, channels: int, norm: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn = NORMS[norm](channels)

    def forward(self, *children: Tensor) -> Tensor:
        """Maps of one size to one of ``channels`` channels."""
        return F.relu(conv_norm(torch.cat(children, dim=1), self.conv, self.bn), inplace=True)


class Tree(nn.Module):
    """Blocks whose outputs meet in a root (figure 3 of the paper).

    Args:
        depth: 1: two blocks and their root; more: two trees of depth - 1.
        in_channels, channels, stride, norm: of the first block.
        level_root: whether the root also gets the input of the level.
        root_channels: channels that the root gets in addition to its own blocks.
    """

    def __init__(
        self,
        depth: int,
        in_channels: int,
        channels: int,
        stride: int,
        norm: str,
        level_root: bool = False,
        root_channels: int = 0,
    ) -> None:
        super().__init__()
        root_channels += 2 * channels + (in_channels if level_root else 0)
        self.depth, self.level_root = depth, level_root
        self.tree1: nn.Module
        self.tree2: nn.Module
        if depth == 1:
            self.tree1 = BasicBlock(in_channels, channels, stride, norm)
            self.tree2 = BasicBlock(channels, channels, 1, norm)
            self.root = Root(root_channels, channels, norm)
        else:
            self.tree1 = Tree(depth - 1, in_channels, channels, stride, norm)
            self.tree2 = Tree(depth - 1, channels, channels, 1, norm, root_channels=root_channels - channels)
        self.downsample = nn.MaxPool2d(stride, stride, ceil_mode=True) if stride > 1 else None
        self.project = None
        if depth == 1 and in_channels != channels:
            self.project = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, bias=False), NORMS[norm](channels)
            )

    def forward(self, x: Tensor, children: Sequence[Tensor] = ()) -> Tensor:
        """(B, in_channels, H, W) to (B, channels, ceil(H / stride), ceil(W / stride))."""
        bottom = x if self.downsample is None else self.downsample(x)
        children = [*children, bottom] if self.level_root else list(children)
        if self.depth > 1:
            x1 = self.tree1(x)
            return self.tree2(x1, [*children, x1])
        residual = bottom if self.project is None else conv_norm(bottom, *self.project)
        x1 = self.tree1(x, residual)
        return self.root(self.tree2(x1, x1), x1, *children)


@register_backbone("dla34")
class DLA34(Backbone):
    """DLA-34. Ignores the classifier and the unused projections in the authors' state dicts.

    Args:
        norm: ``"batch"`` or ``"frozen"``; group norm is impossible, the first layers have fewer channels than groups.

    Raises:
        ValueError: ``norm="group"``.
    """

    out_channels = CHANNELS[2:]
    UNUSED_KEYS = ("fc.", "level3.project.", "level4.project.")
    level2: Tree
    level3: Tree
    level4: Tree
    level5: Tree

    def __init__(self, norm: str = "batch") -> None:
        super().__init__()
        if norm == "group":
            raise ValueError(
                f"dla34: its 16 channels do not divide into {GROUPS} groups; use norm batch or frozen"
            )
        self.base_layer = _conv(3, CHANNELS[0], 7, 1, norm)
        self.level0 = _conv(CHANNELS[0], CHANNELS[0], 3, 1, norm)
        self.level1 = _conv(CHANNELS[0], CHANNELS[1], 3, 2, norm)
        for level in range(2, 6):
            tree = Tree(DEPTHS[level], CHANNELS[level - 1], CHANNELS[level], 2, norm, level_root=level > 2)
            self.add_module(f"level{level}", tree)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self) -> list[list[nn.Module]]:
        """The layers up to stride 2, then level2 to level5."""
        stem: list[nn.Module] = [self.base_layer, self.level0, self.level1]
        return [stem, [self.level2], [self.level3], [self.level4], [self.level5]]

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (B, 3, H, W) to [C2, C3, C4, C5]."""
        for conv, norm, relu in (self.base_layer, self.level0, self.level1):
            x = relu(conv_norm(x, conv, norm))
        c2 = self.level2(x)
        c3 = self.level3(c2)
        c4 = self.level4(c3)
        return [c2, c3, c4, self.level5(c4)]


def _conv(in_channels: int, channels: int, kernel_size: int, stride: int, norm: str) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, channels, kernel_size, stride, padding=kernel_size // 2, bias=False)
    return nn.Sequential(conv, NORMS[norm](channels), nn.ReLU(inplace=True))
