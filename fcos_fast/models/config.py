"""The configuration of a detector: every choice in which the published ones differ.

The command line reads and checks configurations before it imports torch, which takes seconds; so does this file.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from fcos_fast.assignment_rule import RULES, AssignmentRule
from fcos_fast.models.names import unknown_name

if TYPE_CHECKING:
    from typing_extensions import Self  # in typing from Python 3.11 on

NUM_STAGES = 5
"""Of every backbone."""

GROUPS = 32
"""Groups of every group norm (Wu and He, "Group Normalization", 2018)."""

BUILT_IN_BACKBONES = (
    *("darknet19", "dla34", "mobilenet_v2", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d", "wide_resnet50_2", "wide_resnet101_2"),
)
"""Those of ``fcos_fast.models.BACKBONES`` that are registered with the package."""

TIMM_PREFIX = "timm:"


def check_backbone(name: str) -> None:
    """Raise a ValueError where there is no backbone of this name; of timm's, building it tells."""
    registry = sys.modules.get("fcos_fast.models.backbone")  # where others register theirs
    known = [*BUILT_IN_BACKBONES, *(registry.BACKBONES if registry else ())]
    if name not in known and not str(name).startswith(TIMM_PREFIX):
        raise unknown_name("backbone", name, [*dict.fromkeys(known), f"{TIMM_PREFIX}<name>"])


@dataclass(frozen=True)
class DetectorConfig:
    """What defines a detector apart from its head and what that is trained for; the base of the configurations.

    Attributes:
        backbone: a name of ``fcos_fast.models.BACKBONES``.
        num_classes: number of classes C; labels are 0..C-1.
        norm: of the backbone. ``batch`` for training from random weights. ``frozen`` is made for
            pretrained weights: statistics and affine parameters never change. ``group`` for small batches.
        trainable_stages: how many of the backbone's five stages train, counted from the last; 3 is usual
            for pretrained weights.
        stride_in_1x1: where a bottleneck has its stride: in its first 1x1 convolution (weights of Caffe
            and Detectron) or in the 3x3 (weights of torchvision).
        fpn_channels: channels of every pyramid level.
        fpn_norm: norm behind the lateral and output convolutions of the pyramid.
        fpn_relu: whether a ReLU stands behind them.
        fpn_upsampling: of the top-down path.
        p6_from: the map that P6 is made of: ``p5`` and ``c5`` by a convolution, ``max_pool`` of P5.
        dcn: deformable convolutions in a ResNet, plain (``v1``) or modulated (``v2``).
        dcn_stages: the stages that have them, of 2 to 5.
        average_totals: whether several processes share their normalisers, so that the mean of their losses is
            the loss that one process has with all images.
        score_threshold: detections score above it.
        topk_candidates: detections that each level of an image, or all together, send to NMS.
        nms_threshold: IoU above which NMS drops the lower score.
        max_detections: detections per image.
        inclusive_boxes: the convention that x2 and y2 name the last pixel inside: boxes are clipped to
            width - 1 and height - 1, and NMS adds 1 to widths and heights.
        inclusive_targets: whether the network learns boxes in that convention: training subtracts one pixel of the
            original image from x2 and y2, detection adds it back, so that boxes given and returned always end at the
            edge, as in maskrcnn-benchmark; boxes of at most one pixel are not trained on. Checkpoints saved before this
            field existed were trained without it.
        drop_empty: boxes without width or height are dropped ``before_nms``, so that they suppress nothing and take
            no place among ``max_detections`` (mmdetection), or ``at_end``, when they are clipped and in pixels of
            the original image (detectron2), or ``never`` (torchvision).
        batching: how images of different sizes are evaluated. ``group``: together only where their padded
            sizes are equal, so that no image's detections depend on its company. ``pad``: all padded to
            one size.
        channel_order: of the images that the backbone sees; the model is always given RGB.
        pixel_range: the value of white before ``image_mean`` and ``image_std`` apply.
        image_mean: subtracted, per channel, in ``channel_order`` and ``pixel_range``.
        image_std: divided by afterwards, likewise.
        min_size: length in pixels that the shorter side is scaled to; of several, training draws one per
            image and evaluation uses the last. None: images keep their size.
        max_size: bound in pixels of the longer side. None: no bound.
        size_divisor: height and width are padded with zeros to multiples of it.
        min_level: first level of the pyramid; the locations of level n are 2**n pixels apart.
        max_level: last level of the pyramid.

    Raises:
        ValueError, TypeError: for a value that no detector can have; the message names the field.
    """

    backbone: str = "resnet50"
    num_classes: int = 80
    norm: Literal["batch", "frozen", "group"] = "batch"
    trainable_stages: int = 5
    stride_in_1x1: bool = True
    fpn_channels: int = 256
    fpn_norm: Literal["none", "batch", "group"] = "none"
    fpn_relu: bool = False
    fpn_upsampling: Literal["nearest", "bilinear"] = "nearest"
    p6_from: Literal["p5", "c5", "max_pool"] = "p5"
    dcn: Literal["none", "v1", "v2"] = "none"
    dcn_stages: tuple[int, ...] = (3, 4, 5)
    average_totals: bool = True
    score_threshold: float = 0.05
    topk_candidates: int = 1000
    nms_threshold: float = 0.6
    max_detections: int = 100
    inclusive_boxes: bool = True
    inclusive_targets: bool = False
    drop_empty: Literal["never", "before_nms", "at_end"] = "never"
    batching: Literal["group", "pad"] = "group"
    channel_order: Literal["rgb", "bgr"] = "bgr"
    pixel_range: Literal[1, 255] = 255
    image_mean: tuple[float, float, float] = (102.9801, 115.9465, 122.7717)
    image_std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    min_size: int | tuple[int, ...] | None = 800
    max_size: int | None = 1333
    size_divisor: int = 32
    min_level: int = 3
    max_level: int = 7

    def __post_init__(self) -> None:
        for f in fields(self):
            if isinstance(getattr(self, f.name), (list, tuple)):  # lists come from JSON and YAML
                object.__setattr__(self, f.name, _tuples(getattr(self, f.name)))
        _check(self)

    @property
    def strides(self) -> tuple[int, ...]:
        """Pixels between the locations of each level."""
        return tuple(2**level for level in range(self.min_level, self.max_level + 1))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild from :meth:`to_dict`, also after a way through JSON or YAML.

        Raises:
            ValueError: for a name that is no field, with the nearest ones.
        """
        check_fields(cls, values)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values only."""
        return asdict(self)

    def __str__(self) -> str:
        width = max(len(f.name) for f in fields(self))
        return "\n".join(f"{f.name:{width}}  {getattr(self, f.name)}" for f in fields(self))


@dataclass(frozen=True)
class FCOSConfig(DetectorConfig):
    """All that defines an FCOS: every choice in which the published ones differ.

    The defaults are the preset ``official-improved`` but for ``inclusive_targets``.

    Attributes:
        detector: says in a checkpoint or a YAML file which detector this configures.
        head_channels: channels of both towers.
        head_convs: convolutions of each tower.
        head_norm: ``group``: group norm of 32 groups after each of them.
        head_bias: whether the towers' convolutions have a bias.
        head_dcn: a deformable convolution at the end of each tower, plain (``v1``) or modulated (``v2``).
        centerness_on: the tower that predicts the centerness.
        prior: class probability that the classification starts with.
        scale: what the distances of each level are multiplied by before the activation: ``factor``, a learned
            number, ``exp``, exp of a learned number, or ``none``.
        regression: activation of the distances.
        regression_unit: unit of the distances.
        rule: which locations are responsible for which box.
        ignore_padding: whether training leaves out the locations beyond an image's own edge, where the
            batch is padded.
        focal_alpha: weight of the positive class in the focal loss.
        focal_gamma: exponent of the focal loss.
        box_loss: kind of ``fcos_fast.ops.box_loss``.
        box_loss_smooth: added to intersection and union, in ``regression_unit`` squared.
        centerness_weighted: whether each box's loss is multiplied by its target centerness.
        quality: what the centerness output learns: the target ``centerness``, or the ``iou`` of the predicted with
            the target box.
        normalizer: what the losses are divided by. ``weights``: the box loss by the sum of its weights, the other
            two by the number of positive locations. ``positives``: all three by that number. ``image``: each
            image's losses by its own number, and the mean over the images is taken. ``moving_average``: all
            three by the moving average of the number, with momentum 0.9 from 300 on.
        score: of a detection: ``sqrt``, the root of classification * centerness, their ``product``, or the
            ``classification`` alone.
        threshold_on: what the score threshold applies to: the ``score``, or the ``classification`` alone.
        multi_label: whether every class of a location can be a detection, else only its best.
        topk_over: whether ``topk_candidates`` are taken of each ``level``, or of the whole ``image``.
        topk_by: which these are, those of the highest ``score`` or ``classification``.
        class_agnostic_nms: whether NMS drops boxes for better ones of any class, else of their own alone.
        clip: boxes at the image's edge ``before_nms`` or ``after_nms``.

    Raises:
        ValueError, TypeError: for a value that no FCOS can have; the message names the field.
    """

    detector: Literal["fcos"] = "fcos"
    head_channels: int = 256
    head_convs: int = 4
    head_norm: Literal["group", "none"] = "group"
    head_bias: bool = True
    head_dcn: Literal["none", "v1", "v2"] = "none"
    centerness_on: Literal["regression", "classification"] = "regression"
    prior: float = 0.01
    scale: Literal["none", "factor", "exp"] = "factor"
    regression: Literal["relu", "exp"] = "relu"
    regression_unit: Literal["stride", "pixel"] = "stride"
    rule: AssignmentRule = field(default_factory=lambda: RULES["official-improved"])
    ignore_padding: bool = True
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    box_loss: Literal["iou", "linear_iou", "giou", "diou", "ciou"] = "giou"
    box_loss_smooth: float = 1.0
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
        if not isinstance(self.rule, AssignmentRule):
            raise TypeError(f"rule={self.rule!r}; expected an AssignmentRule, for example RULES['official']")
        inner = len(self.rule.sizes_of_interest)
        if inner != len(self.strides) - 1:
            raise ValueError(
                f"rule has {inner} sizes_of_interest; expected {len(self.strides) - 1} for "
                f"P{self.min_level} to P{self.max_level}"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Rebuild from :meth:`to_dict`, also after a way through JSON or YAML.

        Raises:
            ValueError: for a name that is no field, with the nearest ones.
        """
        rule = values.get("rule")
        if isinstance(rule, Mapping):
            check_fields(AssignmentRule, rule)
            values = {
                **values,
                "rule": AssignmentRule(**{name: _tuples(value) for name, value in rule.items()}),
            }
        return super().from_dict(values)


@dataclass(frozen=True)
class RetinaNetConfig(DetectorConfig):
    """All that defines a RetinaNet: every choice in which the published ones differ.

    The defaults are the preset ``retinanet``. At each location there is one anchor for every scale and shape.

    Attributes:
        detector: says in a checkpoint or a YAML file which detector this configures.
        head_channels: channels of both subnets.
        head_convs: convolutions of each subnet.
        head_norm: ``group``: group norm of 32 groups after each of them, which then have no bias.
        prior: class probability that the classification starts with.
        anchor_size: side of the anchors of scale 1 and shape (1, 1), in strides.
        anchor_scales: factors of it.
        anchor_shapes: (width, height) in sides.
        anchor_rule: where the anchors stand. ``centered``: in the centres of the cells, scales outside shapes in their
            order. ``torchvision``: on the cells' corners, shapes outside scales; sides are whole pixels, rounded
            down, and corners are rounded.
        match_threshold: an anchor with this IoU with a box, or more, is to predict it.
        background_threshold: one with less than this is background; between the two it takes part in no loss.
        allow_low_quality: an anchor that no other exceeds in IoU with some box is to predict a box in any case.
        classification_loss: ``focal`` or its second form, ``focal_star`` (FL* in the paper's appendix).
        focal_alpha: weight of the positive class in the focal loss.
        focal_gamma: exponent of the focal loss, and slope of FL*.
        focal_beta: shift of FL*.
        box_loss: ``l1`` or ``smooth_l1``, summed over the four numbers of the coding, or a kind of
            ``fcos_fast.ops.box_loss`` on the decoded boxes.
        smooth_l1_beta: where ``smooth_l1`` goes over from a square to a line.
        normalizer: what the losses are divided by. ``positives``: the number of matched anchors. ``image``:
            each image's losses by its own number, and the mean over the images is taken.

    Raises:
        ValueError, TypeError: for a value that no RetinaNet can have; the message names the field.
    """

    p6_from: Literal["p5", "c5", "max_pool"] = "c5"
    nms_threshold: float = 0.5
    inclusive_boxes: bool = False
    detector: Literal["retinanet"] = "retinanet"
    head_channels: int = 256
    head_convs: int = 4
    head_norm: Literal["group", "none"] = "group"
    prior: float = 0.01
    anchor_size: float = 4.0
    anchor_scales: tuple[float, ...] = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
    anchor_shapes: tuple[tuple[float, float], ...] = ((2**0.5, 0.5**0.5), (1.0, 1.0), (0.5**0.5, 2**0.5))
    anchor_rule: Literal["centered", "torchvision"] = "centered"
    match_threshold: float = 0.5
    background_threshold: float = 0.4
    allow_low_quality: bool = True
    classification_loss: Literal["focal", "focal_star"] = "focal"
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    focal_beta: float = 1.0
    box_loss: Literal["l1", "smooth_l1", "iou", "linear_iou", "giou", "diou", "ciou"] = "giou"
    smooth_l1_beta: float = 1 / 9
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
"""The name in the field ``detector`` of a configuration, to its type."""


def config_from_dict(values: Mapping[str, Any]) -> DetectorConfig:
    """The configuration of any detector from its ``to_dict``; of an FCOS where ``detector`` is not among the values.

    Raises:
        ValueError: for a detector or a field that there is not, with the nearest ones.
    """
    name = values.get("detector", "fcos")
    if name not in CONFIGS:
        raise unknown_name("detector", name, CONFIGS)
    return CONFIGS[name].from_dict(values)


def check_fields(kind: type[DetectorConfig | AssignmentRule], values: Mapping[str, Any]) -> None:
    """Raise a ValueError where a key of ``values`` is no field of the configuration ``kind``."""
    known = [f.name for f in fields(kind)]
    for name in values:
        if name not in known:
            raise unknown_name(f"{kind.__name__} field", name, known)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_positive(value: object) -> bool:
    return _is_number(value) and value > 0


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


_ACCEPTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(
        ["num_classes", "fpn_channels", "topk_candidates", "max_detections", "size_divisor"],
        (_is_count, "a positive integer"),
    ),
    "trainable_stages": (lambda n: n in range(NUM_STAGES + 1), f"0 to {NUM_STAGES}"),
    "head_channels": (lambda n: _is_count(n) and n % GROUPS == 0, f"a positive multiple of {GROUPS}"),
    "head_convs": (lambda n: n == 0 or _is_count(n), "0 or a positive integer"),
    "prior": (lambda p: 0 < p < 1, "a probability between 0 and 1"),
    "score_threshold": (lambda p: 0 <= p <= 1, "a number from 0 to 1"),
    "nms_threshold": (lambda p: 0 <= p <= 1, "a number from 0 to 1"),
    "focal_alpha": (lambda a: a <= 1, "at most 1; negative for no weighting"),
    "focal_gamma": (lambda g: g >= 0, "a number not below 0"),
    "box_loss_smooth": (lambda s: s >= 0, "a number not below 0"),
    **dict.fromkeys(["anchor_size", "smooth_l1_beta"], (_is_positive, "a positive number")),
    "anchor_scales": (
        lambda s: isinstance(s, tuple) and s and all(map(_is_positive, s)),
        "at least one positive number",
    ),
    "anchor_shapes": (
        lambda s: (
            isinstance(s, tuple)
            and s
            and all(isinstance(x, tuple) and len(x) == 2 and all(map(_is_positive, x)) for x in s)
        ),
        "at least one pair of positive numbers, width and height",
    ),
    "match_threshold": (lambda p: 0 < p <= 1, "a number above 0, at most 1"),
    "background_threshold": (lambda p: 0 <= p <= 1, "a number from 0 to 1"),
    "image_mean": (
        lambda m: isinstance(m, tuple) and len(m) == 3 and all(map(_is_number, m)),
        "three numbers, one per channel",
    ),
    "image_std": (
        lambda s: isinstance(s, tuple) and len(s) == 3 and all(map(_is_positive, s)),
        "three positive numbers, one per channel",
    ),
    "min_size": (
        lambda n: n is None or _is_count(n) or (isinstance(n, tuple) and n and all(map(_is_count, n))),
        "a positive integer, several of them, or None",
    ),
    "max_size": (lambda n: n is None or _is_count(n), "a positive integer or None"),
    "dcn_stages": (lambda s: isinstance(s, tuple) and set(s) <= {2, 3, 4, 5}, "some of 2, 3, 4, 5"),
    "min_level": (lambda n: n in (2, 3), "2 or 3"),
    "max_level": (lambda n: n in (5, 6, 7), "5, 6 or 7"),
}
"""Field name to what its value must fulfil, and that in words."""


def _check(config: DetectorConfig) -> None:
    check_backbone(config.backbone)
    kinds = get_type_hints(type(config))
    for name, kind in kinds.items():
        value = getattr(config, name)
        if get_origin(kind) is Literal and value not in get_args(kind):
            raise unknown_name(f"value of {name}", value, map(str, get_args(kind)))
        if kind is bool and not isinstance(value, bool):
            raise TypeError(f"{name}={value!r}; expected True or False")
        if kind is float and not isinstance(value, (int, float)):
            raise TypeError(f"{name}={value!r}; expected a number")
    if config.dcn != "none":
        from fcos_fast.models.backbones import backbone_options

        if "dcn" not in backbone_options(config.backbone):
            raise ValueError(
                f"dcn={config.dcn!r}: {config.backbone} has no deformable convolutions; use a ResNet"
            )
    if config.p6_from == "max_pool" and config.max_level > 6:
        raise ValueError(f"p6_from='max_pool' gives P6 alone, but max_level={config.max_level}; take 5 or 6")
    if config.fpn_norm == "group" and config.fpn_channels % GROUPS:
        raise ValueError(f"fpn_channels={config.fpn_channels}; fpn_norm='group' needs a multiple of {GROUPS}")
    for name, (accepts, expected) in _ACCEPTED.items():
        if name in kinds and not accepts(getattr(config, name)):
            raise ValueError(f"{name}={getattr(config, name)!r}; expected {expected}")
