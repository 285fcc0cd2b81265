"""Checkpoints of other implementations: recognized by their keys, converted from and to their formats."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fcos_fast.data import COCO, VOC, Categories
from fcos_fast.models import PRESETS, DetectorConfig, FCOSConfig, build_backbone, build_detector
from fcos_fast.models.backbones import backbone_options
from fcos_fast.models.checkpoint_formats import (
    CHECKPOINT_FORMATS,
    CLASSES,
    CheckpointFormat,
    differences,
    from_format,
    present_names,
    recognize,
    to_format,
    without_wrapping,
)
from fcos_fast.models.config import BUILT_IN_BACKBONES
from fcos_fast.models.presets import FCOS_PRESETS
from fcos_fast.serialize import check_field_names
from fcos_fast.suggest import unknown_name

SPARSE_COCO = 91
"""Number of outputs of a classifier indexed by COCO's category ids, 1 to 90 with gaps."""

_NEVER = -math.log(1e6)  # logit of an output without a class
_ANCHORS = 9  # of torchvision's RetinaNet, at each location


@dataclass(frozen=True)
class Foreign:
    """A converted checkpoint of another implementation.

    Attributes:
        format: checkpoint format of the file.
        state: content of a checkpoint of this project: ``model_config``, ``categories`` and ``model``.
        presets: presets with the same parameters; the checkpoint was read as the first.
    """

    format: CheckpointFormat
    state: dict[str, Any]
    presets: tuple[str, ...]

    def __str__(self) -> str:
        config = self.state["model_config"]
        others = f"; the parameters also match {', '.join(self.presets[1:])}" if self.presets[1:] else ""
        return (
            f"{self.format.name} checkpoint, read as {self.presets[0]} with {config['backbone']} and "
            f"{config['num_classes']} classes{others}"
        )


def read_foreign(
    checkpoint: Mapping[str, Any], preset: str | None = None, overrides: Mapping[str, Any] | None = None
) -> Foreign:
    """Read the checkpoint of another implementation, in any format of :data:`.CHECKPOINT_FORMATS`.

    Backbone and number of classes are inferred from the parameters; everything else is the preset's. COCO's classes
    are numbered densely: from a classifier with 91 outputs, those of COCO's 80 category ids are kept.

    Args:
        checkpoint: result of ``torch.load``.
        preset: preset of the model; by default the first of the format's presets whose parameters match.
        overrides: fields of the configuration that differ from the preset.

    Raises:
        ValueError: unknown format, or parameters that match no preset; the message lists them.
        ValueError, TypeError: invalid overrides.
    """
    if preset is not None and preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    state = without_wrapping(checkpoint)
    format = recognize(state)
    if format is None:
        some = ", ".join(list(state)[:4]) or "no tensor"
        known = ", ".join(format.name for format in CHECKPOINT_FORMATS)
        raise ValueError(
            f"not a checkpoint of fcos_fast, and its parameters ({some}, ...) match no known format; known are {known}"
        )
    state = present_names(state, format)
    per_location = _ANCHORS if format.name == "torchvision-retinanet" else 1
    if format.name.startswith("torchvision"):
        state = _dense(state, per_location)
    inferred = _infer_config(state, format, per_location) | dict(overrides or {})
    candidates = format.presets if preset is None else (preset,)
    for name in candidates:
        check_field_names(type(PRESETS[name]), inferred)
    configs = {name: replace(PRESETS[name], **inferred) for name in candidates}
    own = {name: _parameters(config) for name, config in configs.items()}
    mismatches = {name: sum(map(len, differences(state, format, own[name]).values())) for name in configs}
    best = min(configs, key=lambda name: mismatches[name])
    content = {
        "model_config": configs[best].to_dict(),
        "categories": _categories(configs[best].num_classes).to_dict(),
        "model": from_format(state, format, own[best]),
    }
    return Foreign(format, content, tuple(name for name in configs if mismatches[name] == 0))


def _infer_config(state: Mapping[str, Tensor], format: CheckpointFormat, per_location: int) -> dict[str, Any]:
    """The fields of the configuration that follow from the parameters."""
    fields: dict[str, Any] = {
        "num_classes": _num_classes(state, format) // per_location,
        "norm": "frozen",
        "trainable_stages": 3,
        **_deformable(state),
    }
    fields["backbone"] = _backbone(state, format, fields)
    if fields["backbone"].startswith("resnext"):
        fields["stride_in_1x1"] = False  # in all ResNeXts, also of projects whose ResNets have it there
    return fields


def write_foreign(
    config: DetectorConfig, state: Mapping[str, Tensor], format: CheckpointFormat
) -> dict[str, Any]:
    """The parameters of an FCOS in the format of another implementation, for ``torch.save``.

    In torchvision's format COCO's 80 classes become 91 outputs; outputs without a class have a probability of 1e-6.

    Args:
        config: configuration of the model.
        state: state dict of the model.
        format: format to write.

    Raises:
        ValueError: models of the format have other parameters.
    """
    if not isinstance(config, FCOSConfig) or format.name == "torchvision-retinanet":
        raise ValueError(
            f"a {config.to_dict()['detector']} cannot be written in the format {format.name}: formats are for FCOS, "
            "and torchvision's RetinaNet loads the state dict of this project unchanged"
        )
    has_scales = any(key.endswith(".scales") for key in state)
    if has_scales != format.has_scales:
        here, there = ("has", "has none") if has_scales else ("has no", "has them")
        fitting = ", ".join(other.name for other in CHECKPOINT_FORMATS if other.has_scales == has_scales)
        raise ValueError(
            f"this model {here} scales, which multiply the distances of a level, but the {format.name} format "
            f"{there}; use one of {fitting}"
        )
    if config.min_level != 3:
        raise ValueError(f"this model's pyramid starts at P{config.min_level}; other formats start at P3")
    if format.name == "torchvision":
        if config.centerness_on == "classification":
            raise ValueError(
                "this model has its centerness on the classification tower; torchvision's is on the regression tower"
            )
        state = _sparse(state)
    theirs = to_format(state, format)
    return theirs if format.container is None else {format.container: theirs}


def other_rules(config: FCOSConfig, format: CheckpointFormat) -> dict[str, tuple[Any, Any]]:
    """Field to own value and theirs, if it differs in the nearest preset of the format and changes results."""
    presets = [FCOS_PRESETS[name].to_dict() for name in format.presets]
    here = {name: value for name, value in config.to_dict().items() if name not in _NOT_RULES}
    there = min(presets, key=lambda preset: sum(preset[name] != value for name, value in here.items()))
    return {name: (value, there[name]) for name, value in here.items() if value != there[name]}


_NOT_RULES = (
    "backbone",
    "num_classes",
    "norm",
    "trainable_stages",
    "fpn_channels",
    "head_channels",
    "head_convs",
)
"""Fields that follow from the parameters, or that do not change what another program computes."""


def _num_classes(state: Mapping[str, Tensor], format: CheckpointFormat) -> int:
    name = format.name_of(CLASSES + "weight")
    if name not in state:
        raise ValueError(f"the {format.name} checkpoint has no {name}, the classification layer")
    return len(state[name])


def _deformable(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The fields for deformable convolutions, inferred from the parameters of their offsets."""
    fields: dict[str, Any] = {}
    stages = set()
    for key, value in state.items():
        if "offset" not in key or value.ndim != 4:
            continue
        kind = "v1" if len(value) == 18 else "v2"
        stage = re.search(r"\.(layer|res)(\d)\.", key)
        if stage is None:
            fields["head_dcn"] = kind
        else:
            fields["dcn"] = kind
            stages.add(int(stage[2]) + (stage[1] == "layer"))
    return fields | ({"dcn_stages": tuple(sorted(stages))} if stages else {})


def _backbone(state: Mapping[str, Tensor], format: CheckpointFormat, fields: Mapping[str, Any]) -> str:
    """The largest backbone whose parameters are all in ``state``, or else the one with the fewest missing.

    Backbones that the user registered are not tried: building one can fail, and no published checkpoint has it.
    """

    def missing_and_size(name: str) -> tuple[int, int]:
        options = {option: fields[option] for option in fields.keys() & backbone_options(name)}
        with torch.device("meta"):
            body = build_backbone(name, **options).state_dict()
        own = {f"backbone.body.{key}": value for key, value in body.items()}
        found = differences(state, format, own)
        return len(found["missing"]) + len(found["of another shape"]), -len(own)

    return min(BUILT_IN_BACKBONES, key=missing_and_size)


def _parameters(config: DetectorConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        return build_detector(config).state_dict()


def _categories(num_classes: int) -> Categories:
    known = {len(categories): categories for categories in (COCO, VOC)}
    return known.get(num_classes) or Categories(tuple(f"class {label}" for label in range(num_classes)))


def _dense(state: dict[str, Tensor], per_location: int) -> dict[str, Tensor]:
    """``state`` without the outputs of torchvision's classifier, per anchor, that are not a class of COCO."""

    def dense(value: Tensor) -> Tensor:
        return value.unflatten(0, (per_location, SPARSE_COCO))[:, list(COCO.ids)].flatten(0, 1)

    return {
        key: dense(value) if key.startswith(CLASSES) and len(value) == per_location * SPARSE_COCO else value
        for key, value in state.items()
    }


def _sparse(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Inverse of :func:`_dense`."""
    sparse = dict(state)
    for name, fill in (("weight", 0.0), ("bias", _NEVER)):
        dense = state[CLASSES + name]
        if len(dense) == len(COCO):
            sparse[CLASSES + name] = dense.new_full((SPARSE_COCO, *dense.shape[1:]), fill)
            sparse[CLASSES + name][list(COCO.ids)] = dense
    return sparse
