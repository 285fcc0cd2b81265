"""The configuration of a detector: every choice in which the published ones differ.

Needs no torch: the command line checks its options before it imports torch, which takes seconds.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from fcos_fast.assignment_rule import RULES, AssignmentRule
from fcos_fast.fields import at_least, between, check_fields, checked, is_positive, multiple_of, positive
from fcos_fast.serialize import check_field_names, from_plain, to_plain
from fcos_fast.suggest import unknown_name

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on

NUM_STAGES = 5
"""Stages of every backbone."""

GROUPS = 32
"""Groups of every group norm (Wu and He, "Group Normalization", 2018)."""

BUILT_IN_BACKBONES = (
    *("darknet19", "dla34", "mobilenet_v2", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
)
"""The names in ``fcos_fast.models.BACKBONES`` that the package registers."""

TIMM_PREFIX = "timm:"


def check_backbone(name: str) -> None:
    """Raise a ValueError unless a backbone of this name is registered. The rest of a ``timm:`` name is not checked."""
    registry = sys.modules.get("fcos_fast.models.backbone")  # imported if anything else was registered
    known = [*BUILT_IN_BACKBONES, *(registry.BACKBONES if registry else ())]
    if name not in known and not name.startswith(TIMM_PREFIX):
        raise unknown_name("backbone", name, [*dict.fromkeys(known), f"{TIMM_PREFIX}<name>"])


@dataclass(frozen=True)
class DetectorConfig:
    """The part of a configuration that all detectors share: everything but the head and its losses.

    Attributes:
        backbone: ``resnet50``, another name in ``fcos_fast.models.BACKBONES``, or ``timm:<name>``.
        num_classes: number of classes C; labels are 0..C-1.
        norm: norm of the backbone. ``batch`` for training from random weights; ``frozen`` for pretrained weights:
            statistics and affine parameters never change; ``group`` for small batches.
        trainable_stages: how many of the backbone's five stages are trained, counted from the last; 3 is usual for
            pretrained weights.
        stride_in_1x1: whether the stride of a bottleneck is in its first 1x1 convolution (weights of Caffe and
            Detectron) or in the 3x3 (weights of torchvision).
        fpn_channels: channels of every pyramid level.
        fpn_norm: norm after the lateral and output convolutions of the pyramid.
        fpn_relu: whether a ReLU follows these convolutions.
        fpn_upsampling: interpolation in the pyramid's top-down path.
        p6_from: how P6 is made: a convolution of ``p5`` or ``c5``, or ``max_pool`` of P5.
        dcn: deformable convolutions in a ResNet, plain (``v1``) or modulated (``v2``).
        dcn_stages: the ResNet stages (2 to 5) with deformable convolutions, if ``dcn`` is not none.
        average_totals: whether the processes all-reduce the normalizers of their losses, so that the mean of the losses
            equals the loss of one process with all images.
        class_weights: factor of each class's classification loss, in the order of the labels; ``balanced``: inversely
            proportional to the number of boxes in the training split, with mean 1 over the boxes.
        score_threshold: only detections with a higher score are kept.
        topk_candidates: maximum number of candidates for NMS per level, or per image (``topk_over``).
        nms_threshold: IoU above which a box suppresses one with a lower score.
        max_detections: maximum number of detections per image.
        inclusive_boxes: whether x2 and y2 are the last pixel inside a box: boxes are clipped to width - 1 and
            height - 1, and NMS adds 1 to widths and heights.
        inclusive_targets: whether the network learns the last pixel inside a box as x2 and y2, as in
            maskrcnn-benchmark: training subtracts one pixel of the original image from x2 and y2 and drops boxes of
            at most one pixel; detection adds it again. Input and output boxes always end at the edge. Checkpoints
            saved before this field existed were trained without it.
        drop_empty: when boxes without width or height are dropped: ``before_nms`` (mmdetection), so that they suppress
            nothing and do not count as ``max_detections``; ``at_end``, after clipping, in pixels of the original image
            (detectron2); or ``never`` (torchvision).
        batching: how images of different sizes are evaluated. ``group``: in one batch only if their padded sizes are
            equal, so that detections do not depend on the other images. ``pad``: all padded to one size.
        channel_order: order of the channels that the backbone receives; the input of the model is always RGB.
        pixel_range: value of a white pixel, to which ``image_mean`` and ``image_std`` refer.
        image_mean: mean of each channel, which is subtracted; in ``channel_order`` and ``pixel_range``.
        image_std: standard deviation of each channel, by which the difference is divided; order and range as for
            ``image_mean``.
        min_size: length in pixels to which the shorter side is scaled. If several are given, training draws one per
            image and evaluation uses the last. null (None in Python): images keep their size.
        max_size: maximum length in pixels of the longer side. null (None in Python): no maximum.
        size_divisor: height and width are padded with zeros to multiples of this number.
        min_level: first level of the pyramid; the locations of level n are 2**n pixels apart.
        max_level: last level of the pyramid.

    Raises:
        TypeError, ValueError: invalid value; the message names the field.
    """

    backbone: str = "resnet50"
    num_classes: int = positive(80)
    norm: Literal["batch", "frozen", "group"] = "batch"
    trainable_stages: int = between(5, 0, NUM_STAGES)
    stride_in_1x1: bool = True
    fpn_channels: int = positive(256)
    fpn_norm: Literal["none", "batch", "group"] = "none"
    fpn_relu: bool = False
    fpn_upsampling: Literal["nearest", "bilinear"] = "nearest"
    p6_from: Literal["p5", "c5", "max_pool"] = "p5"
    dcn: Literal["none", "v1", "v2"] = "none"
    dcn_stages: tuple[Literal[2, 3, 4, 5], ...] = (3, 4, 5)
    average_totals: bool = True
    class_weights: tuple[float, ...] | Literal["balanced"] | None = checked(
        None,
        lambda weights: isinstance(weights, (str, type(None))) or all(map(is_positive, weights)),
        "positive numbers, one per class, balanced, or None",
    )
    score_threshold: float = between(0.05, 0, 1)
    topk_candidates: int = positive(1000)
    nms_threshold: float = between(0.6, 0, 1)
    max_detections: int = positive(100)
    inclusive_boxes: bool = True
    inclusive_targets: bool = False
    drop_empty: Literal["never", "before_nms", "at_end"] = "never"
    batching: Literal["group", "pad"] = "group"
    channel_order: Literal["rgb", "bgr"] = "bgr"
    pixel_range: Literal[1, 255] = 255
    image_mean: tuple[float, float, float] = checked(
        (102.9801, 115.9465, 122.7717),
        lambda mean: all(map(math.isfinite, mean)),
        "three numbers, one per channel",
    )
    image_std: tuple[float, float, float] = checked(
        (1.0, 1.0, 1.0), lambda std: all(map(is_positive, std)), "three positive numbers, one per channel"
    )
    min_size: int | tuple[int, ...] | None = checked(
        800,
        lambda n: n is None or (n != () and all(map(is_positive, n if isinstance(n, tuple) else (n,)))),
        "a positive integer, several of them, or None",
    )
    max_size: int | None = checked(1333, lambda n: n is None or n > 0, "a positive integer or None")
    size_divisor: int = positive(32)
    min_level: Literal[2, 3] = 3
    max_level: Literal[5, 6, 7] = 7

    def __post_init__(self) -> None:
        check_fields(self)
        check_backbone(self.backbone)
        if self.dcn != "none":
            from fcos_fast.models.backbones import backbone_options  # needs torch

            if "dcn" not in backbone_options(self.backbone):
                raise ValueError(
                    f"dcn={self.dcn!r}: {self.backbone} has no deformable convolutions; use a ResNet"
                )
        if self.p6_from == "max_pool" and self.max_level > 6:
            raise ValueError(
                f"max_level={self.max_level}: p6_from='max_pool' adds only P6; use max_level 5 or 6"
            )
        if self.fpn_norm == "group" and self.fpn_channels % GROUPS:
            raise ValueError(
                f"fpn_channels={self.fpn_channels}; fpn_norm='group' needs a multiple of {GROUPS}"
            )

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels between the locations of each level."""
        return tuple(2**level for level in range(self.min_level, self.max_level + 1))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_dict`; missing fields take their defaults.

        ``DetectorConfig.from_dict`` returns the configuration of the detector that the values name.

        Raises:
            ValueError, TypeError: as :func:`fcos_fast.serialize.from_plain`.
        """
        return from_plain(cls, values)

    @classmethod
    def class_for(cls, values: Mapping[str, Any]) -> type[DetectorConfig]:
        """The class of the detector that the values name. Old checkpoints name none; they are FCOS."""
        if cls is not DetectorConfig:
            return cls
        name = values.get("detector", "fcos")
        if name not in CONFIGS:
            raise unknown_name("detector", name, CONFIGS)
        return CONFIGS[name]

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values only, for JSON, YAML and checkpoints."""
        return to_plain(self)

    def __str__(self) -> str:
        width = max(len(f.name) for f in fields(self))
        return "\n".join(f"{f.name:{width}}  {getattr(self, f.name)}" for f in fields(self))


@dataclass(frozen=True)
class FCOSConfig(DetectorConfig):
    """The complete configuration of an FCOS: every choice in which the published ones differ.

    The defaults are the preset ``official-improved`` except for ``inclusive_targets``.

    Attributes:
        detector: names the detector in checkpoints and YAML files.
        head_channels: channels of the head's two towers, classification and regression.
        head_convs: convolutions of each tower.
        head_norm: norm after each convolution of the towers: ``group`` norm with 32 groups, or ``none``.
        head_bias: whether the towers' convolutions have a bias.
        head_dcn: a deformable convolution at the end of each tower, plain (``v1``) or modulated (``v2``).
        centerness_on: tower whose output predicts the centerness.
        prior: initial class probability of the classification head.
        scale: factor of each level's predicted distances before the activation: a learned number (``factor``), the exp
            of one (``exp``), or ``none``.
        regression: activation of the predicted distances.
        regression_unit: unit of the predicted distances.
        rule: which locations are assigned to which box.
        ignore_padding: whether training ignores locations in the padding of the batch.
        focal_alpha: weight of the positive class in the focal loss.
        focal_gamma: exponent of the focal loss.
        box_loss: kind of ``fcos_fast.ops.box_loss``.
        box_loss_smooth: added to intersection and union, in ``regression_unit`` squared.
        centerness_weighted: whether each box's loss is multiplied by its target centerness.
        quality: target of the centerness output: the ``centerness`` of the location, or the ``iou`` of predicted and
            target box.
        normalizer: what the losses are divided by. ``weights``: the box loss by the sum of its weights, the other
            two losses by the number of positive locations. ``positives``: all three by that number. ``image``: each
            image's losses by the image's number, averaged over the images. ``moving_average``: all three by the moving
            average of the number, with momentum 0.9 and initial value 300.
        score: score of a detection: ``sqrt`` of classification * centerness, their ``product``, or the
            ``classification`` alone.
        threshold_on: what the score threshold applies to: the ``score``, or the ``classification`` alone.
        multi_label: whether every class of a location can be a detection, or only its best.
        topk_over: whether ``topk_candidates`` are selected per ``level`` or per ``image``.
        topk_by: what ranks the candidates: the ``score``, or the ``classification`` alone.
        class_agnostic_nms: whether a box suppresses boxes of every class, or only of its own.
        clip: whether boxes are clipped to the image ``before_nms`` or ``after_nms``.

    Raises:
        TypeError, ValueError: invalid value; the message names the field.
    """

    detector: Literal["fcos"] = "fcos"
    head_channels: int = multiple_of(256, GROUPS)
    head_convs: int = at_least(4, 0)
    head_norm: Literal["group", "none"] = "group"
    head_bias: bool = True
    head_dcn: Literal["none", "v1", "v2"] = "none"
    centerness_on: Literal["regression", "classification"] = "regression"
    prior: float = checked(0.01, lambda p: 0 < p < 1, "a number above 0 and below 1")
    scale: Literal["none", "factor", "exp"] = "factor"
    regression: Literal["relu", "exp"] = "relu"
    regression_unit: Literal["stride", "pixel"] = "stride"
    rule: AssignmentRule = field(default_factory=lambda: RULES["official-improved"])
    ignore_padding: bool = True
    focal_alpha: float = checked(0.25, lambda a: a <= 1, "at most 1; negative for no weighting")
    focal_gamma: float = at_least(2.0, 0)
    box_loss: Literal["iou", "linear_iou", "giou", "diou", "ciou"] = "giou"
    box_loss_smooth: float = at_least(1.0, 0)
    centerness_weighted: bool = True
    quality: Literal["centerness", "iou"] = "centerness"
    normalizer: Literal["weights", "positives", "image", "moving_average"] = "weights"
    score: Literal["sqrt", "product", "classification"] = "sqrt"
    threshold_on: Literal["score", "classification"] = "classification"
    multi_label: bool = True
    topk_over: Literal["level", "image"] = "level"
    topk_by: Literal["score", "classification"] = "score"
    class_agnostic_nms: bool = False
    clip: Literal["before_nms", "after_nms"] = "before_nms"

    def __post_init__(self) -> None:
        super().__post_init__()
        inner = len(self.rule.sizes_of_interest)
        if inner != len(self.strides) - 1:
            raise ValueError(
                f"rule has {inner} sizes_of_interest; expected {len(self.strides) - 1} for "
                f"P{self.min_level} to P{self.max_level}"
            )


@dataclass(frozen=True)
class RetinaNetConfig(DetectorConfig):
    """The complete configuration of a RetinaNet: every choice in which the published ones differ.

    The defaults are the preset ``retinanet``. Each location has one anchor for every scale and shape.

    Attributes:
        detector: names the detector in checkpoints and YAML files.
        head_channels: channels of both subnets.
        head_convs: convolutions of each subnet.
        head_norm: norm after each convolution: ``group`` norm with 32 groups (the convolutions then have no bias), or
            ``none``.
        prior: initial class probability of the classification head.
        anchor_size: side of the anchors of scale 1 and shape (1, 1), in strides.
        anchor_scales: factors of ``anchor_size``, one per anchor scale.
        anchor_shapes: (width, height) relative to the side.
        anchor_rule: where the anchors are. ``centered``: on the centers of the cells, ordered by scale, then by shape.
            ``torchvision``: on the corners of the cells, ordered by shape, then by scale; sides are rounded down to
            whole pixels, and corners are rounded.
        match_threshold: an anchor whose IoU with a box is at least this is matched to it.
        background_threshold: an anchor whose IoU with every box is below this is background; those between the two
            thresholds are ignored.
        allow_low_quality: whether a box's best anchors are matched to it even below ``match_threshold``.
        classification_loss: ``focal`` or its second form, ``focal_star`` (FL* in the paper's appendix).
        focal_alpha: weight of the positive class in the focal loss.
        focal_gamma: exponent of the focal loss, and slope of FL*.
        focal_beta: shift of FL*.
        box_loss: ``l1`` or ``smooth_l1``, summed over the four regression values, or a kind of
            ``fcos_fast.ops.box_loss`` on the decoded boxes.
        smooth_l1_beta: absolute difference at which ``smooth_l1`` changes from quadratic to linear.
        normalizer: what the losses are divided by. ``positives``: the number of matched anchors. ``image``: each
            image's losses by the image's number, averaged over the images.

    Raises:
        TypeError, ValueError: invalid value; the message names the field.
    """

    p6_from: Literal["p5", "c5", "max_pool"] = "c5"
    nms_threshold: float = between(0.5, 0, 1)
    inclusive_boxes: bool = False
    detector: Literal["retinanet"] = "retinanet"
    head_channels: int = multiple_of(256, GROUPS)
    head_convs: int = at_least(4, 0)
    head_norm: Literal["group", "none"] = "group"
    prior: float = checked(0.01, lambda p: 0 < p < 1, "a number above 0 and below 1")
    anchor_size: float = positive(4.0)
    anchor_scales: tuple[float, ...] = checked(
        (1.0, 2 ** (1 / 3), 2 ** (2 / 3)),
        lambda scales: scales and all(map(is_positive, scales)),
        "at least one positive number",
    )
    anchor_shapes: tuple[tuple[float, float], ...] = checked(
        ((2**0.5, 0.5**0.5), (1.0, 1.0), (0.5**0.5, 2**0.5)),
        lambda shapes: shapes and all(is_positive(side) for shape in shapes for side in shape),
        "at least one pair of positive numbers, width and height",
    )
    anchor_rule: Literal["centered", "torchvision"] = "centered"
    match_threshold: float = checked(0.5, lambda p: 0 < p <= 1, "a number above 0, at most 1")
    background_threshold: float = between(0.4, 0, 1)
    allow_low_quality: bool = True
    classification_loss: Literal["focal", "focal_star"] = "focal"
    focal_alpha: float = checked(0.25, lambda a: a <= 1, "at most 1; negative for no weighting")
    focal_gamma: float = at_least(2.0, 0)
    focal_beta: float = 1.0
    box_loss: Literal["l1", "smooth_l1", "iou", "linear_iou", "giou", "diou", "ciou"] = "giou"
    smooth_l1_beta: float = positive(1 / 9)
    normalizer: Literal["positives", "image"] = "positives"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.background_threshold > self.match_threshold:
            raise ValueError(
                f"background_threshold={self.background_threshold}; expected at most match_threshold, "
                f"{self.match_threshold}"
            )
        if self.classification_loss == "focal_star" and self.focal_gamma == 0:
            raise ValueError("focal_gamma=0; expected more than 0 for classification_loss focal_star")


CONFIGS: dict[str, type[DetectorConfig]] = {"fcos": FCOSConfig, "retinanet": RetinaNetConfig}
"""Value of the field ``detector`` to the configuration class."""


Preset = TypeVar("Preset", bound=DetectorConfig)


def configure(
    presets: Mapping[str, Preset],
    preset: str,
    backbone: str,
    num_classes: int | None,
    overrides: Mapping[str, Any],
) -> Preset:
    """A preset with another backbone, number of classes (None: the preset's) and other fields.

    Raises:
        ValueError, TypeError: unknown preset or field, with the nearest names; invalid value.
    """
    if preset not in presets:
        raise unknown_name("preset", preset, presets)
    config = presets[preset]
    check_field_names(type(config), overrides)
    if num_classes is not None:
        overrides = {**overrides, "num_classes": num_classes}
    return replace(config, backbone=backbone, **overrides)
