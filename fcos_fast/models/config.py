"""The configuration of an FCOS: every choice in which the published detectors differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fcos_fast.assignment import RULES, AssignmentRule
from fcos_fast.models.backbone import NUM_STAGES
from fcos_fast.models.backbones import BACKBONES
from fcos_fast.models.names import unknown_name
from fcos_fast.models.norm import GROUPS

STRIDES = (8, 16, 32, 64, 128)
"""Pixels between the locations of P3 to P7."""


@dataclass(frozen=True)
class FCOSConfig:
    """All that defines an FCOS. The defaults are the preset ``official-improved``.

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
        p6_from: the map that P6 is made of.
        head_channels: channels of both towers.
        head_convs: convolutions of each tower.
        head_norm: ``group``: group norm of 32 groups after each of them.
        centerness_on: the tower that predicts the centerness.
        prior: class probability that the classification starts with.
        scale_per_level: whether the distances of each level are multiplied by a learned number.
        regression: activation of the distances.
        regression_unit: unit of the distances.
        rule: which locations are responsible for which box.
        ignore_padding: whether training leaves out the locations beyond an image's own edge, where the
            batch is padded.
        focal_alpha, focal_gamma: of the focal loss.
        box_loss: kind of ``fcos_fast.ops.box_loss``.
        box_loss_smooth: added to intersection and union, in ``regression_unit`` squared.
        centerness_weighted: whether the box loss is a mean weighted by the target centerness, else a
            plain mean over the positive locations.
        average_totals: whether several processes share the mean of their normalisers, as one process with all
            images would.
        score_threshold: detections score above it.
        threshold_on: what the threshold applies to: the final ``score`` sqrt(classification *
            centerness), or the ``classification`` alone.
        topk_candidates: detections that each level of an image sends to NMS.
        nms_threshold: IoU above which NMS drops the lower score.
        max_detections: detections per image.
        inclusive_boxes: the convention that x2 and y2 name the last pixel inside: boxes are clipped to
            width - 1 and height - 1, and NMS adds 1 to widths and heights.
        batching: how images of different sizes are evaluated. ``group``: together only where their padded
            sizes are equal, so that no image's detections depend on its company. ``pad``: all padded to
            one size.
        channel_order: of the images that the backbone sees; the model is always given RGB.
        pixel_range: the value of white before ``image_mean`` and ``image_std`` apply.
        image_mean, image_std: per channel, in ``channel_order`` and ``pixel_range``.
        min_size: length in pixels that the shorter side is scaled to; of several, training draws one per
            image and evaluation uses the last. None: images keep their size.
        max_size: bound in pixels of the longer side. None: no bound.
        size_divisor: height and width are padded with zeros to multiples of it.

    Raises:
        ValueError, TypeError: for a value that no FCOS can have; the message names the field.
    """

    backbone: str = "resnet50"
    num_classes: int = 80
    norm: Literal["batch", "frozen", "group"] = "batch"
    trainable_stages: int = 5
    stride_in_1x1: bool = True
    fpn_channels: int = 256
    p6_from: Literal["p5", "c5"] = "p5"
    head_channels: int = 256
    head_convs: int = 4
    head_norm: Literal["group", "none"] = "group"
    centerness_on: Literal["regression", "classification"] = "regression"
    prior: float = 0.01
    scale_per_level: bool = True
    regression: Literal["relu", "exp"] = "relu"
    regression_unit: Literal["stride", "pixel"] = "stride"
    rule: AssignmentRule = field(default_factory=lambda: RULES["official-improved"])
    ignore_padding: bool = True
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    box_loss: Literal["iou", "linear_iou", "giou", "diou", "ciou"] = "giou"
    box_loss_smooth: float = 1.0
    centerness_weighted: bool = True
    average_totals: bool = True
    score_threshold: float = 0.05
    threshold_on: Literal["score", "classification"] = "classification"
    topk_candidates: int = 1000
    nms_threshold: float = 0.6
    max_detections: int = 100
    inclusive_boxes: bool = True
    batching: Literal["group", "pad"] = "group"
    channel_order: Literal["rgb", "bgr"] = "bgr"
    pixel_range: Literal[1, 255] = 255
    image_mean: tuple[float, float, float] = (102.9801, 115.9465, 122.7717)
    image_std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    min_size: int | tuple[int, ...] | None = 800
    max_size: int | None = 1333
    size_divisor: int = 32

    def __post_init__(self) -> None:
        for name in ("image_mean", "image_std", "min_size"):
            if isinstance(getattr(self, name), list):  # from JSON or YAML
                object.__setattr__(self, name, tuple(getattr(self, name)))
        _check_names(self)
        _check_numbers(self)
        _check_sizes(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FCOSConfig:
        """Rebuild from :meth:`to_dict`, also after a way through JSON or YAML.

        Raises:
            ValueError: for a name that is no field, with the nearest ones.
        """
        check_fields(values)
        values = dict(values)
        if isinstance(values.get("rule"), Mapping):
            rule = dict(values["rule"])
            rule["sizes_of_interest"] = tuple(rule["sizes_of_interest"])
            values["rule"] = AssignmentRule(**rule)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values only."""
        return asdict(self)

    def __str__(self) -> str:
        width = max(len(f.name) for f in fields(self))
        return "\n".join(f"{f.name:{width}}  {getattr(self, f.name)}" for f in fields(self))


def check_fields(values: Mapping[str, Any]) -> None:
    """Raise a ValueError where a key of ``values`` is no field of :class:`FCOSConfig`."""
    known = [f.name for f in fields(FCOSConfig)]
    for name in values:
        if name not in known:
            raise unknown_name("FCOSConfig field", name, known)


def _check_names(config: FCOSConfig) -> None:
    if config.backbone not in BACKBONES:
        raise unknown_name("backbone", config.backbone, BACKBONES)
    if not isinstance(config.rule, AssignmentRule):
        raise TypeError(f"rule={config.rule!r}; expected an AssignmentRule, for example RULES['official']")
    for name, kind in get_type_hints(FCOSConfig).items():
        value = getattr(config, name)
        if get_origin(kind) is Literal and value not in get_args(kind):
            raise unknown_name(f"value of {name}", value, map(str, get_args(kind)))
        if kind is bool and not isinstance(value, bool):
            raise TypeError(f"{name}={value!r}; expected True or False")
        if kind is float and not isinstance(value, (int, float)):
            raise TypeError(f"{name}={value!r}; expected a number")


def _check_numbers(config: FCOSConfig) -> None:
    def check(name: str, accepted: bool, expected: str) -> None:
        if not accepted:
            raise ValueError(f"{name}={getattr(config, name)!r}; expected {expected}")

    counts = (
        "num_classes",
        "fpn_channels",
        "head_channels",
        "topk_candidates",
        "max_detections",
        "size_divisor",
    )
    for name in counts:
        check(name, _is_count(getattr(config, name)), "a positive integer")
    check("head_convs", config.head_convs == 0 or _is_count(config.head_convs), "a non-negative integer")
    stages = config.trainable_stages
    check(
        "trainable_stages", stages == 0 or (_is_count(stages) and stages <= NUM_STAGES), f"0 to {NUM_STAGES}"
    )
    check("prior", 0 < config.prior < 1, "a probability between 0 and 1")
    for name in ("score_threshold", "nms_threshold"):
        check(name, 0 <= getattr(config, name) <= 1, "a number from 0 to 1")
    for name in ("focal_gamma", "box_loss_smooth"):
        check(name, getattr(config, name) >= 0, "a non-negative number")
    grouped = config.head_norm == "none" or config.head_channels % GROUPS == 0
    check("head_channels", grouped, f"a multiple of {GROUPS} for head_norm='group'")


def _check_sizes(config: FCOSConfig) -> None:
    sizes = config.min_size if isinstance(config.min_size, tuple) else (config.min_size,)
    if config.min_size is not None and not (sizes and all(map(_is_count, sizes))):
        raise ValueError(f"min_size={config.min_size!r}; expected a positive integer, several, or None")
    if config.max_size is not None and not _is_count(config.max_size):
        raise ValueError(f"max_size={config.max_size!r}; expected a positive integer or None")
    for name in ("image_mean", "image_std"):
        if len(getattr(config, name)) != 3:
            raise ValueError(f"{name}={getattr(config, name)!r}; expected three numbers, one per channel")
    if not all(std > 0 for std in config.image_std):
        raise ValueError(f"image_std={config.image_std!r}; expected positive numbers")
    inner = len(config.rule.sizes_of_interest)
    if inner != len(STRIDES) - 1:
        raise ValueError(f"rule has {inner} sizes_of_interest; expected {len(STRIDES) - 1} for P3 to P7")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
