"""The head of FCOS (Tian et al., 2019): two towers shared by all levels, and three outputs per location."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fcos_fast.models.config import GROUPS
from fcos_fast.models.deform_conv import DeformConv2d
from fcos_fast.models.norm import GroupNormReLU


class HeadOutputs(NamedTuple):
    """The outputs of the head, one tensor per level, in the memory format of the convolutions.

    Attributes:
        cls_logits: (B, C, H, W) each.
        box_regression: (B, 4, H, W) each; non-negative distances left, top, right, bottom, in strides or pixels.
        centerness: (B, 1, H, W) each; logits.
    """

    cls_logits: list[Tensor]
    box_regression: list[Tensor]
    centerness: list[Tensor]


def head_conv(in_channels: int, out_channels: int, bias: float | None = 0.0) -> nn.Conv2d:
    """A 3x3 convolution of a head with random weights; ``bias`` is its initial value, None for no bias."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=bias is not None)
    nn.init.normal_(conv.weight, std=0.01)
    if bias is not None and conv.bias is not None:
        nn.init.constant_(conv.bias, bias)
    return conv


def prior_bias(prior: float) -> float:
    """The logit of the probability ``prior``."""
    return -math.log((1 - prior) / prior)


def _tower(in_channels: int, channels: int, num_convs: int, norm: str, bias: bool, dcn: str) -> nn.Sequential:
    modules: list[nn.Module] = []
    for i in range(num_convs):
        conv = head_conv(in_channels if i == 0 else channels, channels, 0.0 if bias else None)
        if dcn != "none" and i == num_convs - 1:
            deformable = DeformConv2d(conv.in_channels, channels, bias=bias, modulated=dcn == "v2")
            deformable.conv = conv
            modules.append(deformable)
        else:
            modules.append(conv)
        if norm == "group":
            # The identity stands for torchvision's ReLU, so that the keys are the same.
            modules += [GroupNormReLU(GROUPS, channels), nn.Identity()]
        else:
            modules.append(nn.ReLU(inplace=True))
    return nn.Sequential(*modules)


def bounded_exp(x: Tensor) -> Tensor:
    """``exp(x)`` up to about 60,000 pixels, the maximum of float16.

    Without the bound, one overflow at a background location makes every weight NaN: its gradient is 0 from the loss
    times infinity from exp.
    """
    return torch.exp(x.clamp(max=11.0))


class ClassificationHead(nn.Module):
    """The classification tower and its logits, and the centerness if it is on this tower."""

    def __init__(
        self, tower: nn.Sequential, channels: int, num_classes: int, prior: float, centerness: bool
    ) -> None:
        super().__init__()
        self.conv = tower
        self.cls_logits = head_conv(channels, num_classes, bias=prior_bias(prior))
        self.bbox_ctrness = head_conv(channels, 1) if centerness else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """One level (B, channels, H, W) to logits (B, C, H, W) and centerness (B, 1, H, W) or None."""
        x = self.conv(x)
        return self.cls_logits(x), None if self.bbox_ctrness is None else self.bbox_ctrness(x)


class RegressionHead(nn.Module):
    """The regression tower and its distances, and the centerness if it is on this tower."""

    def __init__(
        self,
        tower: nn.Sequential,
        channels: int,
        activation: str,
        scale: str,
        num_levels: int,
        centerness: bool,
    ) -> None:
        super().__init__()
        self.conv = tower
        self.bbox_reg = head_conv(channels, 4)
        self.bbox_ctrness = head_conv(channels, 1) if centerness else None
        self.activation = bounded_exp if activation == "exp" else torch.relu
        self.scale = scale
        self.scales = nn.Parameter(torch.ones(num_levels)) if scale != "none" else None

    def forward(self, x: Tensor, level: int) -> tuple[Tensor, Tensor | None]:
        """One level (B, channels, H, W) to ltrb (B, 4, H, W) and centerness (B, 1, H, W) or None."""
        x = self.conv(x)
        distances = self.bbox_reg(x)
        if self.scales is not None:
            factor = self.scales[level].exp() if self.scale == "exp" else self.scales[level]
            distances = distances * factor.to(distances.dtype)
        return self.activation(distances), None if self.bbox_ctrness is None else self.bbox_ctrness(x)


class FCOSHead(nn.Module):
    """Both towers over all levels.

    Args:
        in_channels: channels of the pyramid.
        num_classes: number of classes C.
        num_levels: number of levels.
        channels, num_convs, norm: of each tower; ``norm`` is ``"group"`` or ``"none"``.
        prior: initial probability of every class.
        centerness_on: tower that predicts the centerness, ``"regression"`` or ``"classification"``.
        activation: activation of the distances, ``"relu"`` or ``"exp"``.
        scale: factor of each level's distances before the activation: ``"none"``, a learned number (``"factor"``), or
            the exp of one (``"exp"``).
        bias: whether the convolutions of the towers have a bias.
        dcn: ``"v1"`` or ``"v2"``: the last convolution of each tower is deformable (:class:`DeformConv2d`).
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        num_levels: int,
        channels: int = 256,
        num_convs: int = 4,
        norm: str = "group",
        prior: float = 0.01,
        centerness_on: str = "regression",
        activation: str = "relu",
        scale: str = "factor",
        bias: bool = True,
        dcn: str = "none",
    ) -> None:
        super().__init__()
        width = channels if num_convs else in_channels
        self.classification_head = ClassificationHead(
            _tower(in_channels, channels, num_convs, norm, bias, dcn),
            width,
            num_classes,
            prior,
            centerness=centerness_on == "classification",
        )
        self.regression_head = RegressionHead(
            _tower(in_channels, channels, num_convs, norm, bias, dcn),
            width,
            activation,
            scale,
            num_levels,
            centerness=centerness_on == "regression",
        )

    def forward(self, features: Sequence[Tensor]) -> HeadOutputs:
        """[P3, ..., P7] to the three outputs of every level."""
        outputs = HeadOutputs([], [], [])
        for level, x in enumerate(features):
            cls_logits, centerness = self.classification_head(x)
            box_regression, centerness_too = self.regression_head(x, level)
            outputs.cls_logits.append(cls_logits)
            outputs.box_regression.append(box_regression)
            outputs.centerness.append(centerness_too if centerness is None else centerness)
        return outputs
