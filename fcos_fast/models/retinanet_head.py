"""The head of RetinaNet (Lin et al., 2017): two subnets shared by all levels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from fcos_fast.models.config import GROUPS
from fcos_fast.models.head import head_conv, prior_bias
from fcos_fast.models.norm import GroupNormReLU


class RetinaNetOutputs(NamedTuple):
    """The outputs of the head for n anchors per location, one tensor per level, in the convolutions' memory format.

    Attributes:
        cls_logits: (B, n * C, H, W) each, the C classes of an anchor in a row.
        box_regression: (B, n * 4, H, W) each; (dx, dy, dw, dh) of each anchor, see
            :func:`fcos_fast.models.anchors.encode_boxes`.
    """

    cls_logits: list[Tensor]
    box_regression: list[Tensor]


def _subnet(in_channels: int, channels: int, num_convs: int, norm: str) -> nn.Sequential:
    layers = []
    for i in range(num_convs):
        inputs = in_channels if i == 0 else channels
        if norm == "group":
            layers.append(
                nn.Sequential(head_conv(inputs, channels, bias=None), GroupNormReLU(GROUPS, channels))
            )
        else:
            layers.append(nn.Sequential(head_conv(inputs, channels), nn.ReLU(inplace=True)))
    return nn.Sequential(*layers)


class RetinaNetClassificationHead(nn.Module):
    """The classification subnet."""

    def __init__(self, subnet: nn.Sequential, channels: int, num_logits: int, prior: float) -> None:
        super().__init__()
        self.conv = subnet
        self.cls_logits = head_conv(channels, num_logits, prior_bias(prior))

    def forward(self, x: Tensor) -> Tensor:
        """One level (B, channels, H, W) to logits (B, n * C, H, W)."""
        return self.cls_logits(self.conv(x))


class RetinaNetRegressionHead(nn.Module):
    """The box subnet."""

    def __init__(self, subnet: nn.Sequential, channels: int, num_anchors: int) -> None:
        super().__init__()
        self.conv = subnet
        self.bbox_reg = head_conv(channels, 4 * num_anchors)

    def forward(self, x: Tensor) -> Tensor:
        """One level (B, channels, H, W) to deltas (B, n * 4, H, W)."""
        return self.bbox_reg(self.conv(x))


class RetinaNetHead(nn.Module):
    """Both subnets over all levels.

    Args:
        in_channels: channels of the pyramid.
        num_anchors: anchors per location n.
        num_classes: number of classes C.
        channels, num_convs, norm: of each subnet; ``norm`` is ``"group"`` or ``"none"``.
        prior: initial probability of every class.
    """

    def __init__(
        self,
        in_channels: int,
        num_anchors: int,
        num_classes: int,
        channels: int = 256,
        num_convs: int = 4,
        norm: str = "group",
        prior: float = 0.01,
    ) -> None:
        super().__init__()
        width = channels if num_convs else in_channels
        self.classification_head = RetinaNetClassificationHead(
            _subnet(in_channels, channels, num_convs, norm), width, num_anchors * num_classes, prior
        )
        self.regression_head = RetinaNetRegressionHead(
            _subnet(in_channels, channels, num_convs, norm), width, num_anchors
        )

    def forward(self, features: Sequence[Tensor]) -> RetinaNetOutputs:
        """[P3, ..., P7] to both outputs of every level."""
        return RetinaNetOutputs(
            [self.classification_head(x) for x in features], [self.regression_head(x) for x in features]
        )
