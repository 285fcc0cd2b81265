"""Checkpoint formats: the parameter names and shapes of the published FCOS implementations.

This project names parameters as torchvision does. A format renames our names to those of another implementation; the
same table serves reading and writing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fcos_fast.models.darknet import read_in_order
from fcos_fast.suggest import unknown_name

CLASSES = "head.classification_head.cls_logits."
"""Prefix of the only parameters whose shape depends on the number of classes."""

_SCALES = "head.regression_head.scales"
_EPS = 1e-5  # of every batch norm of this project

Rename = tuple[str, str | Callable[[re.Match[str]], str]]
"""Pattern and replacement of ``re.sub``."""


@dataclass(frozen=True)
class CheckpointFormat:
    """How one implementation names and stores its parameters.

    Attributes:
        name: name of the implementation.
        presets: presets whose models have this format, the most common first.
        marker: pattern that occurs only in the names of this format.
        renames: from our name to theirs, applied one after the other.
        scale: name of the scale of level {}, if there is one parameter per level; None: one tensor for all levels, as
            ours, under the name that ``renames`` returns.
        scale_shape: shape of each of them.
        aliases: from older names of this format to the present ones.
        ignored: pattern of the names of what is not a parameter.
        norm_eps: whether its frozen batch norms add 1e-5 to the variance, as ours do.
        container: key of the parameters in a file of this format; None: the file is the state dict.
    """

    name: str
    presets: tuple[str, ...]
    marker: str
    renames: tuple[Rename, ...] = ()
    scale: str | None = None
    scale_shape: tuple[int, ...] = (1,)
    aliases: tuple[Rename, ...] = ()
    ignored: str = r"num_batches_tracked$"
    norm_eps: bool = True
    container: str | None = None

    @property
    def has_scales(self) -> bool:
        """Whether it stores scales of the levels' distances."""
        return self.scale is not None or self.name_of(_SCALES) != _SCALES

    def name_of(self, key: str) -> str:
        """This format's name of our parameter ``key``."""
        return _rename(key, self.renames)

    def names_of(self, key: str, tensor: Tensor) -> list[str]:
        """The names under which this format stores our parameter ``key``; scales can have one name per level."""
        if key == _SCALES and self.scale is not None:
            return [self.scale.format(level) for level in range(len(tensor))]
        return [self.name_of(key)]


def _rename(key: str, renames: Iterable[Rename]) -> str:
    for pattern, replacement in renames:
        key = re.sub(pattern, replacement, key)
    return key


def _number(template: str, offset: int) -> Callable[[re.Match[str]], str]:
    """A replacement: the first group, a number, plus ``offset``, in the template's ``{}``."""
    return lambda match: template.format(int(match[1]) + offset)


def _pyramid(lateral: str, output: str, offset: int) -> tuple[Rename, ...]:
    """The convolutions of the pyramid, numbered from ``offset`` on."""
    return (
        (r"^backbone\.fpn\.inner_blocks\.(\d)\.0\.", _number(lateral, offset)),
        (r"^backbone\.fpn\.layer_blocks\.(\d)\.0\.", _number(output, offset)),
    )


def _towers(classification: str, regression: str) -> tuple[Rename, ...]:
    """Towers that are sequences of convolution, norm and ReLU, as ours are."""
    return (
        (r"^head\.classification_head\.conv\.", classification),
        (r"^head\.regression_head\.conv\.", regression),
    )


def _outputs(classes: str, boxes: str, centerness: str) -> tuple[Rename, ...]:
    return (
        (r"^head\.classification_head\.cls_logits\.", classes),
        (r"^head\.regression_head\.bbox_reg\.", boxes),
        (r"^head\.(?:classification|regression)_head\.bbox_ctrness\.", centerness),
    )


# MobileNetV2 before torchvision had it: each block is one flat sequence of layers. The first block does not widen.
_FLAT_FIRST_BLOCK = {"0.0": 0, "0.1": 1, "1": 3, "2": 4}
_FLAT_BLOCK = {"0.0": 0, "0.1": 1, "1.0": 3, "1.1": 4, "2": 6, "3": 7}


def _flat_mobilenet(match: re.Match[str]) -> str:
    block, layer = match.groups()
    layers = _FLAT_FIRST_BLOCK if block == "1" else _FLAT_BLOCK
    return f"features.{block}.conv.{layers[layer]}."


_FLAT_MOBILENET = ((r"features\.([1-9]|1\d)\.conv\.(\d\.[01]|\d)\.", _flat_mobilenet),)


def _mmdetection_tower(match: re.Match[str]) -> str:
    convs, index = match.groups()
    block, layer = divmod(int(index), 3)
    return f"{convs}.{block}.{('conv', 'gn', 'activate')[layer]}."


_DETECTRON2_BODY: tuple[Rename, ...] = (
    (r"^(backbone\.body\..*\.conv2)\.conv\.weight$", r"\1.weight"),
    (r"^(backbone\.body\..*\.conv2)\.offset\.", r"\1_offset."),
    (r"^backbone\.body\.conv1\.", "backbone.bottom_up.stem.conv1."),
    (r"^backbone\.body\.bn1\.", "backbone.bottom_up.stem.conv1.norm."),
    (r"^backbone\.body\.layer(\d)\.", _number("backbone.bottom_up.res{}.", 1)),
    (r"^backbone\.body\.", "backbone.bottom_up."),  # DLA, MobileNetV2
    (r"(bottom_up\.res.*)\.bn(\d)\.", r"\1.conv\2.norm."),
    (r"(bottom_up\.res.*)\.downsample\.0\.", r"\1.shortcut."),
    (r"(bottom_up\.res.*)\.downsample\.1\.", r"\1.shortcut.norm."),
    *_pyramid("backbone.fpn_lateral{}.", "backbone.fpn_output{}.", 3),
    (r"^backbone\.fpn\.extra_blocks\.", "backbone.top_block."),
)

_NOTEBOOK: tuple[Rename, ...] = (
    (r"^backbone\.body\.", "backbone."),
    *_pyramid("fpn.prj_{}.", "fpn.conv_{}.", 3),
    (r"^backbone\.fpn\.extra_blocks\.p(\d)\.", r"fpn.conv_out\1."),
    *_towers("head.cls_conv.", "head.reg_conv."),
    *_outputs("head.cls_logits.", "head.reg_pred.", "head.cnt_logits."),
)

CHECKPOINT_FORMATS = (
    CheckpointFormat(
        "official",
        presets=("official-improved", "official"),
        marker=r"^rpn\.head\.",
        renames=(
            (r"^backbone\.body\.(conv1|bn1)\.", r"backbone.body.stem.\1."),
            *_pyramid("backbone.fpn.fpn_inner{}.", "backbone.fpn.fpn_layer{}.", 2),
            (r"^backbone\.fpn\.extra_blocks\.", "backbone.fpn.top_blocks."),
            *_FLAT_MOBILENET,
            *_towers("rpn.head.cls_tower.", "rpn.head.bbox_tower."),
            *_outputs("rpn.head.cls_logits.", "rpn.head.bbox_pred.", "rpn.head.centerness."),
        ),
        scale="rpn.head.scales.{}.scale",
        norm_eps=False,
        container="model",
    ),
    CheckpointFormat(
        "adelaidet",
        presets=("adelaidet", "adelaidet-iou", "adelaidet-rt"),
        marker=r"^proposal_generator\.fcos_head\.",
        renames=(
            *_DETECTRON2_BODY,
            *_FLAT_MOBILENET,
            *_towers("proposal_generator.fcos_head.cls_tower.", "proposal_generator.fcos_head.bbox_tower."),
            *_outputs(
                "proposal_generator.fcos_head.cls_logits.",
                "proposal_generator.fcos_head.bbox_pred.",
                "proposal_generator.fcos_head.ctrness.",
            ),
        ),
        scale="proposal_generator.fcos_head.scales.{}.scale",
        # from AdelaiDet's script that converts official checkpoints
        aliases=((r"(fcos_head)\.centerness\.", r"\1.ctrness."),),
        ignored=r"num_batches_tracked$|^pixel_(mean|std)$|\.level[34]\.project\.",  # DLA's are never used
        container="model",
    ),
    CheckpointFormat(
        "detectron2",
        presets=("detectron2",),
        marker=r"^head\.(cls|bbox)_subnet\.",
        renames=(
            *_DETECTRON2_BODY,
            *_towers("head.cls_subnet.", "head.bbox_subnet."),
            *_outputs("head.cls_score.", "head.bbox_pred.", "head.ctrness."),
        ),
        ignored=r"num_batches_tracked$|^pixel_(mean|std)$|^anchor_generator\.",
        container="model",
    ),
    CheckpointFormat(
        "torchvision-retinanet",
        presets=("torchvision-retinanet", "torchvision-retinanet-v2"),
        marker=r"^head\.classification_head\.conv\.\d+\.\d",  # each convolution in a sequence of its own
    ),
    CheckpointFormat("torchvision", presets=("torchvision",), marker=r"^head\.classification_head\."),
    CheckpointFormat(
        "mmdetection",
        presets=("mmdetection-tricks", "mmdetection"),
        marker=r"^bbox_head\.",
        renames=(
            (r"^backbone\.body\.", "backbone."),
            *_pyramid("neck.lateral_convs.{}.conv.", "neck.fpn_convs.{}.conv.", 0),
            (r"^backbone\.fpn\.extra_blocks\.p6\.", "neck.fpn_convs.3.conv."),
            (r"^backbone\.fpn\.extra_blocks\.p7\.", "neck.fpn_convs.4.conv."),
            *_towers("bbox_head.cls_convs.", "bbox_head.reg_convs."),
            (r"(bbox_head\.(?:cls|reg)_convs)\.(\d+)\.", _mmdetection_tower),
            (r"(conv2|_convs\.\d\.conv)\.conv\.", r"\1."),  # deformable
            (r"(conv2|_convs\.\d\.conv)\.offset\.", r"\1.conv_offset."),
            *_outputs("bbox_head.conv_cls.", "bbox_head.conv_reg.", "bbox_head.conv_centerness."),
        ),
        scale="bbox_head.scales.{}.scale",
        scale_shape=(),
        aliases=((r"^bbox_head\.fcos_(cls|reg|centerness)\.", r"bbox_head.conv_\1."),),
        container="state_dict",
    ),
    CheckpointFormat(
        "simpleaicv",
        presets=("simpleaicv",),
        marker=r"^clsregcnt_head\.",
        renames=(
            (r"^backbone\.body\.", "backbone."),
            (r"^(backbone\..*conv\d)\.weight$", r"\1.layer.0.weight"),
            (r"^(backbone\.(?:layer.*\.)?)bn(\d)\.", r"\1conv\2.layer.1."),
            (r"^(backbone\.layer.*)\.downsample\.", r"\1.downsample_conv.layer."),
            *_pyramid("fpn.P{}_1.", "fpn.P{}_2.", 3),
            (r"^backbone\.fpn\.extra_blocks\.p6\.", "fpn.P6."),
            (r"^backbone\.fpn\.extra_blocks\.p7\.", "fpn.P7.1."),
            *_towers("clsregcnt_head.cls_head.", "clsregcnt_head.reg_head."),
            *_outputs("clsregcnt_head.cls_out.", "clsregcnt_head.reg_out.", "clsregcnt_head.center_out."),
            (r"^head\.regression_head\.scales$", "scales"),
        ),
    ),
    CheckpointFormat(
        "notebook",
        presets=("notebook",),
        marker=r"^fcos_body\.",
        renames=(*_NOTEBOOK, (r"^", "fcos_body.")),
        scale="fcos_body.head.scale_exp.{}.scale",
    ),
    CheckpointFormat(
        "bubbliiiing",
        presets=("notebook",),
        marker=r"^head\.cls_conv\.",
        renames=_NOTEBOOK,
        scale="head.scale_exp.{}.scale",
    ),
)
"""All formats that can be read and written."""


def find_format(name: str) -> CheckpointFormat:
    """The format called ``name``; else a ValueError with the nearest names."""
    for format in CHECKPOINT_FORMATS:
        if format.name == name:
            return format
    raise unknown_name("checkpoint format", name, (format.name for format in CHECKPOINT_FORMATS))


def recognize(keys: Iterable[str]) -> CheckpointFormat | None:
    """The format with parameters of these names (without ``module.``), or None."""
    keys = list(keys)
    for format in CHECKPOINT_FORMATS:
        if any(re.search(format.marker, key) for key in keys):
            return format
    return None


def without_wrapping(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The parameters in a loaded checkpoint file, without the prefix of DataParallel.

    The file is the state dict, or contains it as ``model``, ``state_dict`` or ``model_state_dict``.
    """
    for name in ("model", "state_dict", "model_state_dict"):
        if isinstance(checkpoint.get(name), Mapping):
            checkpoint = checkpoint[name]
            break
    state = {key: value for key, value in checkpoint.items() if isinstance(value, Tensor)}
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def from_format(
    state: Mapping[str, Tensor], format: CheckpointFormat, own: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The parameters of a checkpoint with our names and shapes.

    Args:
        state: output of :func:`without_wrapping`.
        format: its format.
        own: state dict of the model that will load them, for names and shapes; can be on ``meta``.

    Raises:
        ValueError: parameters are left over, missing or of another shape; the message lists them.
    """
    problems = differences(state, format, own)
    if any(problems.values()):
        listed = "; ".join(f"{what}: {', '.join(names)}" for what, names in problems.items() if names)
        raise ValueError(f"the {format.name} checkpoint does not fit the model; {listed}")
    state = present_names(state, format)
    loaded = {}
    for key, like in own.items():
        names = format.names_of(key, like)
        if key.endswith("num_batches_tracked"):
            loaded[key] = state.get(names[0], torch.zeros((), dtype=torch.int64))
            continue
        value = torch.stack([state[name] for name in names]).reshape(like.shape)
        if not format.norm_eps and key.endswith("running_var"):
            value = value - _EPS
        loaded[key] = value.to(like.dtype)
    return loaded


def differences(
    state: Mapping[str, Tensor], format: CheckpointFormat, own: Mapping[str, Tensor]
) -> dict[str, list[str]]:
    """The parameters that are ``missing``, ``left over`` or ``of another shape`` in a checkpoint for a model.

    Arguments as of :func:`from_format`.
    """
    state = present_names(state, format)
    missing, misshapen, wanted = [], [], set()
    for key, like in own.items():
        names = format.names_of(key, like)
        wanted.update(names)
        if key.endswith("num_batches_tracked"):
            continue
        shape = like.shape if len(names) == 1 else torch.Size(format.scale_shape)
        for name in names:
            if name not in state:
                missing.append(name)
            elif state[name].shape != shape:
                misshapen.append(f"{name} {tuple(state[name].shape)} instead of {tuple(shape)}")
    left_over = [name for name in state if name not in wanted and not re.search(format.ignored, name)]
    return {"missing": missing, "left over": left_over, "of another shape": misshapen}


def to_format(state: Mapping[str, Tensor], format: CheckpointFormat) -> dict[str, Tensor]:
    """Our parameters with the names and shapes of ``format``; inverse of :func:`from_format`."""
    theirs: dict[str, Tensor] = {}
    for key, value in state.items():
        names = format.names_of(key, value)
        if key == _SCALES and format.scale is not None:
            theirs |= {name: v.reshape(format.scale_shape) for name, v in zip(names, value, strict=True)}
            continue
        if not format.norm_eps:
            if key.endswith("num_batches_tracked"):
                continue
            if key.endswith("running_var"):
                value = value + _EPS
        theirs[names[0]] = value
    return theirs


def present_names(state: Mapping[str, Tensor], format: CheckpointFormat) -> dict[str, Tensor]:
    """The parameters of a checkpoint with the names that ``renames`` returns instead of older or other ones."""
    return _named_darknet({_rename(key, format.aliases): value for key, value in state.items()})


def _named_darknet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the layers of a notebook's DarkNet19 (``backbone.block1.0.weight``) to our names."""
    blocks = {
        key: found[1] for key in state if (found := re.match(r"((?:fcos_body\.)?backbone\.)block\d", key))
    }
    if not blocks:
        return state
    prefix = next(iter(blocks.values()))
    layers = read_in_order({key: state[key] for key in blocks})
    others = {key: value for key, value in state.items() if key not in blocks}
    return others | {prefix + key: value for key, value in layers.items()}
