"""The published detectors as complete configurations.

A preset says what a detector computes. How its backbone is trained is the user's: every preset starts
with batch norm and all stages trainable, as random weights need it; with pretrained weights the published
recipes have ``norm="frozen"`` and ``trainable_stages=3``. In evaluation the two norms are the same map.

Where a published program differs from its preset, the comment says in what. All but ``official-improved`` train
as published on the locations of the padding too, as background.
"""

from __future__ import annotations

from dataclasses import replace

from fcos_fast.assignment_rule import RULES
from fcos_fast.models.config import DetectorConfig, FCOSConfig
from fcos_fast.models.retinanet_presets import RETINANET_PRESETS

_BGR = {"channel_order": "bgr", "pixel_range": 255, "image_std": (1.0, 1.0, 1.0)}
_CAFFE2_BGR = _BGR | {"image_mean": (102.9801, 115.9465, 122.7717)}
_DETECTRON_BGR = _BGR | {"image_mean": (103.53, 116.28, 123.675)}
_IMAGENET_RGB = {
    "channel_order": "rgb",
    "pixel_range": 1,
    "image_mean": (0.485, 0.456, 0.406),
    "image_std": (0.229, 0.224, 0.225),
}

# Distances as the paper of 2019 has them, and the centerness on the tower of the classes.
_PAPER = {"centerness_on": "classification", "regression": "exp", "regression_unit": "pixel"}

# tianzhi0549/FCOS, fcos_R_50_FPN_1x. There the area that decides between two boxes has 1 added to their sides, and
# detections that end beyond the image, by less than a pixel where it was enlarged, are not clipped again.
_OFFICIAL = FCOSConfig(
    **_PAPER,
    inclusive_targets=True,
    rule=RULES["official"],
    ignore_padding=False,
    box_loss="iou",
    **_CAFFE2_BGR,
)

# aim-uofa/AdelaiDet, configs/FCOS-Detection: R_50_1x.
_ADELAIDET = FCOSConfig(
    rule=RULES["adelaidet"],
    ignore_padding=False,
    inclusive_boxes=False,
    drop_empty="at_end",
    clip="after_nms",
    **_DETECTRON_BGR,
)

# open-mmlab/mmdetection 3.x, configs/fcos: fcos_r50-caffe_fpn_gn-head_1x_coco. There an IoU below 1e-6 counts as
# 1e-6 in the loss, here below 1e-7.
_MMDETECTION = FCOSConfig(
    **_PAPER,
    head_bias=False,
    rule=RULES["mmdetection"],
    ignore_padding=False,
    box_loss="iou",
    box_loss_smooth=0.0,
    score="product",
    topk_by="classification",
    nms_threshold=0.5,
    inclusive_boxes=False,
    drop_empty="before_nms",
    **_CAFFE2_BGR,
)

FCOS_PRESETS: dict[str, FCOSConfig] = {
    # tianzhi0549/FCOS with centre sampling, GIoU, normalised regression and centerness on the regression
    # tower. That code also trains on the locations of the padding, as background: ignore_padding=False.
    "official-improved": FCOSConfig(inclusive_targets=True),
    "official": _OFFICIAL,
    "adelaidet": _ADELAIDET,
    # With BOX_QUALITY "iou".
    "adelaidet-iou": replace(_ADELAIDET, quality="iou", centerness_weighted=False, normalizer="positives"),
    # The real-time models, FCOS_RT: P3 to P5. They are trained at sizes from 256 to 608.
    "adelaidet-rt": replace(
        _ADELAIDET,
        rule=replace(RULES["adelaidet"], sizes_of_interest=(64.0, 128.0)),
        min_size=512,
        max_size=736,
        max_level=5,
    ),
    # facebookresearch/detectron2, configs/common/models/fcos.py.
    "detectron2": FCOSConfig(
        scale="none",
        rule=RULES["detectron2"],
        ignore_padding=False,
        box_loss_smooth=0.0,
        centerness_weighted=False,
        normalizer="moving_average",
        average_totals=False,
        score_threshold=0.2,
        threshold_on="score",
        inclusive_boxes=False,
        drop_empty="at_end",
        clip="after_nms",
        **_DETECTRON_BGR,
    ),
    "mmdetection": _MMDETECTION,
    # fcos_r50-caffe_fpn_gn-head-center-normbbox-centeronreg-giou_1x_coco.
    "mmdetection-tricks": replace(
        _MMDETECTION,
        head_bias=True,
        centerness_on="regression",
        regression="relu",
        regression_unit="stride",
        rule=replace(RULES["mmdetection"], sampling="center_clipped"),
        box_loss="giou",
        nms_threshold=0.6,
        **_DETECTRON_BGR,
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
    # zgcr/SimpleAICV_pytorch_training_examples, resnet50_fcos. There images are padded to squares of 1024, the losses
    # take probabilities from 1e-4 to 1 - 1e-4 alone and are 0 for a batch without a positive location, and decoded
    # boxes are cut to whole pixels.
    "simpleaicv": FCOSConfig(
        stride_in_1x1=False,
        fpn_upsampling="bilinear",
        head_bias=False,
        scale="exp",
        regression="exp",
        regression_unit="pixel",
        rule=RULES["simpleaicv"],
        ignore_padding=False,
        box_loss="ciou",
        box_loss_smooth=0.0,
        normalizer="positives",
        average_totals=False,
        threshold_on="score",
        multi_label=False,
        topk_over="image",
        class_agnostic_nms=True,
        inclusive_boxes=False,
        clip="after_nms",
        channel_order="rgb",
        pixel_range=1,
        image_mean=(0.0, 0.0, 0.0),
        min_size=1024,
        max_size=1024,
    ),
    # VectXmy/FCOS.Pytorch for VOC, published with norm="frozen" and trainable_stages=3 (first stage and stem frozen).
    # There a score of exactly the threshold passes, NMS adds 1 to the sides in areas but not in overlaps, and boxes are
    # clipped to the padded image. Neither its data sets nor its evaluation add 1: no inclusive_targets.
    "notebook": FCOSConfig(
        num_classes=20,
        stride_in_1x1=False,
        **_PAPER,
        rule=RULES["notebook"],
        ignore_padding=False,
        focal_alpha=0.75,  # its 0.25 is the weight of the negatives
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
        clip="after_nms",
        max_size=1024,
        **_IMAGENET_RGB,
    ),
}

PRESETS: dict[str, DetectorConfig] = {**FCOS_PRESETS, **RETINANET_PRESETS}
"""Preset name to configuration."""
