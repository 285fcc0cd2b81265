"""The published FCOS detectors as complete configurations.

A preset says what a detector computes. How its backbone is trained is the user's: every preset starts
with batch norm and all stages trainable, as random weights need it; with pretrained weights the published
recipes have ``norm="frozen"`` and ``trainable_stages=3``. In evaluation the two norms are the same map.
"""

from __future__ import annotations

from dataclasses import replace

from fcos_fast.assignment import RULES
from fcos_fast.models.config import FCOSConfig

_IMAGENET_BGR = {"image_mean": (103.53, 116.28, 123.675)}
_IMAGENET_RGB = {
    "channel_order": "rgb",
    "pixel_range": 1,
    "image_mean": (0.485, 0.456, 0.406),
    "image_std": (0.229, 0.224, 0.225),
}

# tianzhi0549/FCOS as the paper of 2019 has it.
_OFFICIAL = FCOSConfig(
    centerness_on="classification",
    regression="exp",
    regression_unit="pixel",
    rule=RULES["official"],
    ignore_padding=False,
    box_loss="iou",
)

# aim-uofa/AdelaiDet, FCOS-Detection.
_ADELAIDET = FCOSConfig(
    rule=RULES["adelaidet"],
    ignore_padding=False,
    inclusive_boxes=False,
    **_IMAGENET_BGR,
)

# open-mmlab/mmdetection 3.x, configs/fcos: fcos_r50-caffe_fpn_gn-head_1x_coco. Of each level its candidates are
# those of the best classification.
_MMDETECTION = FCOSConfig(
    head_bias=False,
    centerness_on="classification",
    regression="exp",
    regression_unit="pixel",
    rule=RULES["mmdetection"],
    ignore_padding=False,
    box_loss="iou",
    box_loss_smooth=0.0,
    score="product",
    nms_threshold=0.5,
    inclusive_boxes=False,
)

PRESETS: dict[str, FCOSConfig] = {
    # tianzhi0549/FCOS with centre sampling, GIoU, normalised regression and centerness on the regression
    # tower. That code also trains on the locations of the padding, as background: ignore_padding=False.
    "official-improved": FCOSConfig(),
    "official": _OFFICIAL,
    "adelaidet": _ADELAIDET,
    # With BOX_QUALITY "iou".
    "adelaidet-iou": replace(_ADELAIDET, quality="iou", centerness_weighted=False, normalizer="positives"),
    # The real-time models; P6 and P7, which they lack, are here.
    "adelaidet-rt": replace(_ADELAIDET, min_size=512, max_size=736),
    "detectron2": FCOSConfig(
        scale="none",
        rule=RULES["detectron2"],
        ignore_padding=False,
        box_loss_smooth=0.0,
        centerness_weighted=False,
        average_totals=False,
        score_threshold=0.2,
        threshold_on="score",
        inclusive_boxes=False,
        **_IMAGENET_BGR,
    ),
    "mmdetection": _MMDETECTION,
    "mmdetection-tricks": replace(
        _MMDETECTION,
        head_bias=True,
        centerness_on="regression",
        regression="relu",
        regression_unit="stride",
        rule=replace(RULES["mmdetection"], sampling="center_clipped"),
        box_loss="giou",
        nms_threshold=0.6,
    ),
    # torchvision.models.detection.fcos_resnet50_fpn.
    "torchvision": FCOSConfig(
        num_classes=91,
        stride_in_1x1=False,
        scale="none",
        rule=RULES["torchvision"],
        ignore_padding=False,
        box_loss_smooth=0.0,
        centerness_weighted=False,
        normalizer="positives",
        average_totals=False,
        score_threshold=0.2,
        threshold_on="score",
        inclusive_boxes=False,
        batching="pad",
        **_IMAGENET_RGB,
    ),
    "simpleaicv": FCOSConfig(
        stride_in_1x1=False,
        head_bias=False,
        scale="exp",
        regression="exp",
        regression_unit="pixel",
        rule=RULES["simpleaicv"],
        ignore_padding=False,
        box_loss_smooth=0.0,
        normalizer="positives",
        average_totals=False,
        threshold_on="score",
        multi_label=False,
        topk_over="image",
        inclusive_boxes=False,
        channel_order="rgb",
        pixel_range=1,
        image_mean=(0.0, 0.0, 0.0),
        min_size=1024,
        max_size=1024,
    ),
    "notebook": FCOSConfig(
        num_classes=20,
        stride_in_1x1=False,
        centerness_on="classification",
        regression="exp",
        regression_unit="pixel",
        rule=RULES["notebook"],
        ignore_padding=False,
        focal_alpha=0.75,
        box_loss_smooth=0.0,
        centerness_weighted=False,
        normalizer="image",
        average_totals=False,
        score="product",
        score_threshold=0.3,
        threshold_on="score",
        multi_label=False,
        topk_candidates=150,
        topk_over="image",
        nms_threshold=0.2,
        max_detections=150,
        max_size=1024,
        **_IMAGENET_RGB,
    ),
}
"""Preset name to configuration."""
