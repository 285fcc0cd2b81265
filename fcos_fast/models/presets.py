"""The published detectors as complete configurations.

A preset defines what a detector computes, not how its backbone is trained: every preset has batch norm and all stages
trainable, for random weights. With pretrained weights, the published recipes use ``norm="frozen"`` and
``trainable_stages=3``; in evaluation both norms compute the same.

Comments name the differences between a published implementation and its preset. Like the implementations, all presets
except ``official-improved`` also train on the locations in the padding, as background.
"""

from __future__ import annotations

from dataclasses import replace

from fcos_fast.assignment_rule import RULES
from fcos_fast.models.config import DetectorConfig, FCOSConfig
from fcos_fast.models.recommended import IMAGENET_MEAN, IMAGENET_STD
from fcos_fast.models.retinanet_presets import RETINANET_PRESETS

# Of BGR images in 0..255, the means of detectron2 and mmdetection; the default is Caffe2's.
_DETECTRON_MEAN = (103.53, 116.28, 123.675)

# tianzhi0549/FCOS, fcos_R_50_FPN_1x. That code adds 1 to both sides of a box before it compares areas. It does not
# clip again after resizing to the original image, where boxes may end less than a pixel outside.
_OFFICIAL = FCOSConfig(
    centerness_on="classification",
    regression="exp",
    regression_unit="pixel",
    inclusive_targets=True,
    rule=RULES["official"],
    ignore_padding=False,
    box_loss="iou",
)

# aim-uofa/AdelaiDet, configs/FCOS-Detection: R_50_1x.
_ADELAIDET = FCOSConfig(
    rule=RULES["adelaidet"],
    ignore_padding=False,
    inclusive_boxes=False,
    drop_empty="at_end",
    clip="after_nms",
    image_mean=_DETECTRON_MEAN,
)

# open-mmlab/mmdetection 3.x, configs/fcos: fcos_r50-caffe_fpn_gn-head_1x_coco. Its loss clamps the IoU to at least
# 1e-6, this one to 1e-7.
_MMDETECTION = FCOSConfig(
    centerness_on="classification",
    regression="exp",
    regression_unit="pixel",
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
)

FCOS_PRESETS: dict[str, FCOSConfig] = {
    # tianzhi0549/FCOS with center sampling, GIoU, normalized regression and centerness on the regression tower. That
    # code also trains on the locations in the padding, as background: ignore_padding=False.
    "official-improved": FCOSConfig(inclusive_targets=True),
    "official": _OFFICIAL,
    "adelaidet": _ADELAIDET,
    # With BOX_QUALITY "iou".
    "adelaidet-iou": replace(_ADELAIDET, quality="iou", centerness_weighted=False, normalizer="positives"),
    # The real-time models, FCOS_RT: P3 to P5, trained at sizes from 256 to 608.
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
        image_mean=_DETECTRON_MEAN,
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
        image_mean=_DETECTRON_MEAN,
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
        channel_order="rgb",
        pixel_range=1,
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    ),
    # zgcr/SimpleAICV_pytorch_training_examples, resnet50_fcos. That code pads images to squares of 1024,
    # clamps probabilities to [1e-4, 1 - 1e-4] in the losses, which are 0 for a batch without a positive location, and
    # truncates decoded boxes to whole pixels.
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
    # That code keeps scores equal to the threshold, adds 1 to the sides in the areas of NMS but not in its
    # intersections, and clips boxes to the padded image. Its datasets and evaluation add no 1: no inclusive_targets.
    "notebook": FCOSConfig(
        num_classes=20,
        stride_in_1x1=False,
        centerness_on="classification",
        regression="exp",
        regression_unit="pixel",
        rule=RULES["notebook"],
        ignore_padding=False,
        focal_alpha=0.75,  # its 0.25 weights the negatives
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
        channel_order="rgb",
        pixel_range=1,
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
    ),
}

PRESETS: dict[str, DetectorConfig] = {**FCOS_PRESETS, **RETINANET_PRESETS}
"""Preset name to configuration."""
