"""The published detectors as complete configurations.

A preset says what a detector computes. How its backbone is trained is the user's: every preset starts
with batch norm and all stages trainable, as random weights need it; with pretrained weights the published
recipes have ``norm="frozen"`` and ``trainable_stages=3``. In evaluation the two norms are the same map.
"""

from __future__ import annotations

from fcos_fast.assignment import RULES
from fcos_fast.models.config import DetectorConfig, FCOSConfig
from fcos_fast.models.retinanet_presets import RETINANET_PRESETS

FCOS_PRESETS: dict[str, FCOSConfig] = {
    # tianzhi0549/FCOS with centre sampling, GIoU, normalised regression and centerness on the regression
    # tower. That code also trains on the locations of the padding, as background: ignore_padding=False.
    "official-improved": FCOSConfig(),
    # torchvision.models.detection.fcos_resnet50_fpn.
    "torchvision": FCOSConfig(
        num_classes=91,
        stride_in_1x1=False,
        scale_per_level=False,
        rule=RULES["torchvision"],
        ignore_padding=False,
        box_loss_smooth=0.0,
        centerness_weighted=False,
        average_totals=False,
        score_threshold=0.2,
        threshold_on="score",
        inclusive_boxes=False,
        batching="pad",
        channel_order="rgb",
        pixel_range=1,
        image_mean=(0.485, 0.456, 0.406),
        image_std=(0.229, 0.224, 0.225),
    ),
}

PRESETS: dict[str, DetectorConfig] = {**FCOS_PRESETS, **RETINANET_PRESETS}
"""Preset name to configuration."""
