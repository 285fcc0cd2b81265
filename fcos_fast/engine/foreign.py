"""Checkpoints of other implementations: recognised by their keys, read as ours, written as theirs."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fcos_fast.data import COCO, VOC, Categories
from fcos_fast.models import BACKBONES, PRESETS, DetectorConfig, FCOSConfig, build_backbone, build_detector
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
from fcos_fast.models.presets import FCOS_PRESETS
from fcos_fast.serialize import check_field_names
from fcos_fast.suggest import unknown_name

SPARSE_COCO = 91
"""Outputs of a classifier that COCO's own ids index, 1 to 90 with gaps."""

_NEVER = -math.log(1e6)  # logit of an output that stands for no class
_ANCHORS = 9  # of torchvision's RetinaNet, at each location


@dataclass(frozen=True)
class Foreign:
    """A checkpoint of another implementation, read.

    Attributes:
        format: that it has.
        state: what a checkpoint of this project holds: ``model_config``, ``categories`` and ``model``.
        presets: those whose models have the same parameters; the first is what it was taken for.
    """

    format: CheckpointFormat
    state: dict[str, Any]
    presets: tuple[str, ...]

    def __str__(self) -> str:
        config = self.state["model_config"]
        others = (
            f"; its parameters are also those of {', '.join(self.presets[1:])}" if self.presets[1:] else ""
        )
        return (
            f"{self.format.name} checkpoint, read as {self.presets[0]} with {config['backbone']} and "
            f"{config['num_classes']} classes{others}"
        )


def read_foreign(
    checkpoint: Mapping[str, Any], preset: str | None = None, overrides: Mapping[str, Any] | None = None
) -> Foreign:
    """Read the checkpoint of another implementation, in any format of :data:`.CHECKPOINT_FORMATS`.

    Backbone and number of classes follow from the parameters, everything else from the preset. COCO's classes are
    numbered densely: of a classifier with 91 outputs those of COCO's 80 ids are kept.

    Args:
        checkpoint: what ``torch.load`` returned.
        preset: what the checkpoint is; by default the first of the format's presets that has its parameters.
        overrides: fields of the configuration that differ from the preset.

    Raises:
        ValueError: an unknown format, or parameters that no model of the presets has; the message lists them.
        ValueError, TypeError: overrides that no configuration can have.
    """
    if preset is not None and preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    state = without_wrapping(checkpoint)
    format = recognize(state)
    if format is None:
        some = ", ".join(list(state)[:4]) or "no tensor"
        known = ", ".join(format.name for format in CHECKPOINT_FORMATS)
        raise ValueError(
            f"this is no checkpoint of fcos_fast, and its parameters ({some}, ...) are of no known format; known are "
            f"{known}"
        )
    state = present_names(state, format)
    per_location = _ANCHORS if format.name == "torchvision-retinanet" else 1
    if format.name.startswith("torchvision"):
        state = _dense(state, per_location)
    given: dict[str, Any] = {
        "num_classes": _num_classes(state, format) // per_location,
        "norm": "frozen",
        "trainable_stages": 3,
        **_deformable(state),
    }
    given["backbone"] = _backbone(state, format, given)
    if given["backbone"].startswith("resnext"):
        given["stride_in_1x1"] = False  # in all of them, whatever their ResNets have
    given |= overrides or {}
    candidates = format.presets if preset is None else (preset,)
    for name in candidates:
        check_field_names(type(PRESETS[name]), given)
    configs = {name: replace(PRESETS[name], **given) for name in candidates}
    own = {name: _parameters(config) for name, config in configs.items()}
    misfits = {name: sum(map(len, differences(state, format, own[name]).values())) for name in configs}
    best = min(misfits, key=misfits.get)
    model = from_format(state, format, own[best])
    saved = {
        "model_config": configs[best].to_dict(),
        "categories": _categories(configs[best].num_classes).to_dict(),
        "model": model,
    }
    return Foreign(format, saved, tuple(name for name in configs if misfits[name] == 0))


def write_foreign(
    config: DetectorConfig, state: Mapping[str, Tensor], format: CheckpointFormat
) -> dict[str, Any]:
    """What ``torch.save`` is to write so that another implementation reads the parameters of an FCOS.

    Torchvision's gets 91 outputs for COCO's 80 classes; those that stand for no class have a probability of 1e-6.

    Args:
        config: of the model.
        state: its state dict.
        format: of the file.

    Raises:
        ValueError: the format's models have other parameters.
    """
    if not isinstance(config, FCOSConfig) or format.name == "torchvision-retinanet":
        raise ValueError(
            f"a {config.detector} is not written in the format {format.name}: that holds an FCOS, and torchvision's "
            "RetinaNet takes the state dict of ours as it is"
        )
    has_scales = any(key.endswith(".scales") for key in state)
    if has_scales != format.has_scales:
        here, there = ("has", "has none") if has_scales else ("has no", "has them")
        fitting = ", ".join(other.name for other in CHECKPOINT_FORMATS if other.has_scales == has_scales)
        raise ValueError(
            f"this model {here} scales, which multiply the distances of a level, the {format.name} format {there}; "
            f"formats that fit: {fitting}"
        )
    if config.min_level != 3:
        raise ValueError(f"this model's pyramid begins at P{config.min_level}; those of other formats at P3")
    if format.name == "torchvision":
        if config.centerness_on == "classification":
            raise ValueError(
                "this model has its centerness on the classification tower, torchvision's on the other"
            )
        state = _sparse(state)
    theirs = to_format(state, format)
    return theirs if format.container is None else {format.container: theirs}


def other_rules(config: FCOSConfig, format: CheckpointFormat) -> dict[str, tuple[Any, Any]]:
    """Field to value here and value there, where the nearest of a format's presets computes something else."""
    presets = [FCOS_PRESETS[name].to_dict() for name in format.presets]
    here = {name: value for name, value in config.to_dict().items() if name not in _NO_RULES}
    there = min(presets, key=lambda preset: sum(preset[name] != value for name, value in here.items()))
    return {name: (value, there[name]) for name, value in here.items() if value != there[name]}


_NO_RULES = (
    "backbone",
    "num_classes",
    "norm",
    "trainable_stages",
    "fpn_channels",
    "head_channels",
    "head_convs",
)
"""Fields that follow from the parameters, or are nothing that another program would do differently."""


def _num_classes(state: Mapping[str, Tensor], format: CheckpointFormat) -> int:
    name = format.name_of(CLASSES + "weight")
    if name not in state:
        raise ValueError(f"the {format.name} checkpoint has no {name}, so no classification layer")
    return len(state[name])


def _deformable(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Fields of the configuration for the deformable convolutions whose offsets are among the parameters."""
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
    """The greatest of the backbones whose parameters all are there; where none is, the one that lacks the least."""

    def lacks_and_has(name: str) -> tuple[int, int]:
        options = {option: fields[option] for option in fields.keys() & backbone_options(name)}
        with torch.device("meta"):
            body = build_backbone(name, **options).state_dict()
        own = {f"backbone.body.{key}": value for key, value in body.items()}
        found = differences(state, format, own)
        return len(found["missing"]) + len(found["of another shape"]), -len(own)

    return min(BACKBONES, key=lacks_and_has)


def _parameters(config: DetectorConfig) -> dict[str, Tensor]:
    with torch.device("meta"):
        return build_detector(config).state_dict()


def _categories(num_classes: int) -> Categories:
    known = {len(categories): categories for categories in (COCO, VOC)}
    return known.get(num_classes) or Categories(tuple(f"class {label}" for label in range(num_classes)))


def _dense(state: dict[str, Tensor], per_location: int) -> dict[str, Tensor]:
    """Without the outputs of torchvision's classifier, of each anchor, that stand for no class of COCO."""

    def dense(value: Tensor) -> Tensor:
        return value.unflatten(0, (per_location, SPARSE_COCO))[:, list(COCO.ids)].flatten(0, 1)

    return {
        key: dense(value) if key.startswith(CLASSES) and len(value) == per_location * SPARSE_COCO else value
        for key, value in state.items()
    }


def _sparse(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The opposite of :func:`_dense`."""
    sparse = dict(state)
    for name, fill in (("weight", 0.0), ("bias", _NEVER)):
        dense = state[CLASSES + name]
        if len(dense) == len(COCO):
            sparse[CLASSES + name] = dense.new_full((SPARSE_COCO, *dense.shape[1:]), fill)
            sparse[CLASSES + name][list(COCO.ids)] = dense
    return sparse
