"""The published RetinaNets as complete configurations; see :mod:`fcos_fast.models.presets`."""

from __future__ import annotations

from dataclasses import replace

from fcos_fast.models.config import RetinaNetConfig

_TORCHVISION_V1 = RetinaNetConfig(
    num_classes=91,
    stride_in_1x1=False,
    p6_from="p5",  # torchvision's first version; its second and the paper use C5
    head_norm="none",
    anchor_rule="torchvision",
    box_loss="l1",
    normalizer="image",
    max_detections=300,
    batching="pad",
    channel_order="rgb",
    pixel_range=1,
    image_mean=(0.485, 0.456, 0.406),
    image_std=(0.229, 0.224, 0.225),
)

RETINANET_PRESETS: dict[str, RetinaNetConfig] = {
    # For training from random weights: group norm in the head, GIoU loss, unrounded anchors centered on the cells;
    # image sizes and normalization of the preset official-improved.
    "retinanet": RetinaNetConfig(),
    # torchvision.models.detection.retinanet_resnet50_fpn.
    "torchvision-retinanet": _TORCHVISION_V1,
    # torchvision.models.detection.retinanet_resnet50_fpn_v2.
    "torchvision-retinanet-v2": replace(_TORCHVISION_V1, p6_from="c5", head_norm="group", box_loss="giou"),
    # The anchors, matching and losses of bubbliiiing/retinanet-pytorch and zylo117's EfficientDet. Their box loss
    # averages over the four regression values, this one sums them.
    "retinanet-tutorial": replace(
        _TORCHVISION_V1,
        num_classes=80,
        p6_from="c5",
        anchor_rule="centered",
        anchor_shapes=((1.0, 1.0), (1.4, 0.7), (0.7, 1.4)),
        allow_low_quality=False,
        box_loss="smooth_l1",
        smooth_l1_beta=1 / 9,
        max_detections=100,
    ),
}
"""Preset name to configuration."""
