"""Detectors by size, for one's own data: backbone, pyramid, head and input size that go together.

They follow the preset ``official-improved``, except that boxes end at the edge of the image everywhere, every location
of a box has the same weight in the box loss, and images are normalized as for the weights of torchvision.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, TypeAlias

from fcos_fast.models.config import FCOSConfig

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of RGB images from 0 to 1, as in torchvision."""

_BASE = FCOSConfig(
    stride_in_1x1=False,
    box_loss_smooth=0.0,
    centerness_weighted=False,
    inclusive_boxes=False,
    drop_empty="at_end",
    channel_order="rgb",
    pixel_range=1,
    image_mean=IMAGENET_MEAN,
    image_std=IMAGENET_STD,
)

ModelSize: TypeAlias = Literal["nano", "small", "medium", "large"]

SIZES: dict[str, FCOSConfig] = {
    "nano": replace(
        _BASE,
        backbone="mobilenet_v2",
        fpn_channels=64,
        head_channels=64,
        head_convs=2,
        min_size=320,
        max_size=320,
    ),
    "small": replace(
        _BASE,
        backbone="resnet18",
        fpn_channels=128,
        head_channels=128,
        head_convs=2,
        min_size=480,
        max_size=480,
    ),
    "medium": replace(
        _BASE,
        backbone="resnet50",
        fpn_channels=192,
        head_channels=192,
        head_convs=3,
        min_size=640,
        max_size=640,
    ),
    "large": replace(_BASE, backbone="resnet101", min_size=800, max_size=1333),
}
"""Name to configuration. ``min_size`` equal to ``max_size`` scales the longer side to it."""
