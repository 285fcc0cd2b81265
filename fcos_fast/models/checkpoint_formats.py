"""Names and forms of the parameters in the checkpoints of the published FCOS, and the way to ours and back.

This project names parameters as torchvision does. A format says, for each of our names, what the other implementation
calls it; reading and writing are the same table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fcos_fast.models.darknet import read_in_order
from fcos_fast.suggest import unknown_name

CLASSES = "head.classification_head.cls_logits."
"""Begin of the names of the only parameters that know the classes."""

_SCALES = "head.regression_head.scales"
_EPS = 1e-5  # of every batch norm here
_MOST_CONVS = 8  # of a tower


@dataclass(frozen=True)
class CheckpointFormat:
    """How one implementation names and stores its parameters.

    Attributes:
        name: of the implementation.
        presets: whose models have this format, the most common first.
        marker: a pattern that occurs in the names of this format alone.
        renames: (pattern, replacement) pairs, applied to our name one after the other. In a replacement, ``<1>`` is the
            pattern's first group and ``<1+2>`` that group as a number, plus 2.
        scale: name of the parameter that multiplies the distances of level {}, one per level; None: our one tensor for
            all levels, under the name that ``renames`` give it.
        scale_shape: of each of them.
        aliases: (pattern, replacement) of ``re.sub``, which turn older names of this format into the present ones.
        ignored: pattern of the names of what is no parameter.
        norm_eps: whether its frozen batch norms add 1e-5 to the variance, as ours do.
        container: under which name a file of this format holds the parameters; None: the file holds nothing else.
    """

    name: str
    presets: tuple[str, ...]
    marker: str
    renames: tuple[tuple[str, str], ...] = ()
    scale: str | None = None
    scale_shape: tuple[int, ...] = (1,)
    aliases: tuple[tuple[str, str], ...] = ()
    ignored: str = r"num_batches_tracked$"
    norm_eps: bool = True
    container: str | None = None

    @property
    def has_scales(self) -> bool:
        """Does it store numbers that multiply the distances of a level?"""
        return self.scale is not None or self.name_of(_SCALES) != _SCALES

    def name_of(self, key: str) -> str:
        """What this format calls our parameter ``key``."""
        for pattern, replacement in self.renames:
            key = re.sub(pattern, lambda match, text=replacement: _expand(match, text), key)
        return key

    def names_of(self, key: str, tensor: Tensor) -> list[str]:
        """The names under which this format stores our parameter ``key``: several for the scales of the levels."""
        if key == _SCALES and self.scale is not None:
            return [self.scale.format(level) for level in range(len(tensor))]
        return [self.name_of(key)]


def _expand(match: re.Match, text: str) -> str:
    def group(reference: re.Match) -> str:
        value = match[int(reference[1])]
        return value if reference[2] is None else str(int(value) + int(reference[2]))

    return re.sub(r"<(\d)(?:\+(\d))?>", group, text)


def _towers(classification: str, regression: str) -> tuple[tuple[str, str], ...]:
    """Towers that are sequences of convolution, norm, ReLU, as ours are."""
    return (
        (r"^head\.classification_head\.conv\.", classification),
        (r"^head\.regression_head\.conv\.", regression),
    )


def _outputs(classes: str, boxes: str, centerness: str) -> tuple[tuple[str, str], ...]:
    return (
        (r"^head\.classification_head\.cls_logits\.", classes),
        (r"^head\.regression_head\.bbox_reg\.", boxes),
        (r"^head\.(?:classification|regression)_head\.bbox_ctrness\.", centerness),
    )


# MobileNetV2 as it was before torchvision had it: one flat sequence of layers in each block.
_FLAT_MOBILENET = (
    (r"(features\.1\.conv)\.1\.", "<1>.3."),
    (r"(features\.1\.conv)\.2\.", "<1>.4."),
    (r"(features\.1\.conv)\.0\.([01])\.", "<1>.<2>."),
    (r"(features\.(?:[2-9]|1\d)\.conv)\.2\.(?=weight|bias|running|num)", "<1>.6."),
    (r"(features\.(?:[2-9]|1\d)\.conv)\.3\.(?=weight|bias|running|num)", "<1>.7."),
    (r"(features\.(?:[2-9]|1\d)\.conv)\.1\.([01])\.", "<1>.<2+3>."),
    (r"(features\.(?:[2-9]|1\d)\.conv)\.0\.([01])\.", "<1>.<2>."),
)

_DETECTRON2_BODY = (
    (r"^(backbone\.body\..*\.conv2)\.conv\.weight$", "<1>.weight"),
    (r"^(backbone\.body\..*\.conv2)\.offset\.", "<1>_offset."),
    (r"^backbone\.body\.conv1\.", "backbone.bottom_up.stem.conv1."),
    (r"^backbone\.body\.bn1\.", "backbone.bottom_up.stem.conv1.norm."),
    (r"^backbone\.body\.layer(\d)\.", "backbone.bottom_up.res<1+1>."),
    (r"^backbone\.body\.", "backbone.bottom_up."),  # DLA, MobileNetV2
    (r"(bottom_up\.res.*)\.bn(\d)\.", "<1>.conv<2>.norm."),
    (r"(bottom_up\.res.*)\.downsample\.0\.", "<1>.shortcut."),
    (r"(bottom_up\.res.*)\.downsample\.1\.", "<1>.shortcut.norm."),
    (r"^backbone\.fpn\.inner_blocks\.(\d)\.0\.", "backbone.fpn_lateral<1+3>."),
    (r"^backbone\.fpn\.layer_blocks\.(\d)\.0\.", "backbone.fpn_output<1+3>."),
    (r"^backbone\.fpn\.extra_blocks\.", "backbone.top_block."),
)

_NOTEBOOK = (
    (r"^backbone\.body\.", "backbone."),
    (r"^backbone\.fpn\.inner_blocks\.(\d)\.0\.", "fpn.prj_<1+3>."),
    (r"^backbone\.fpn\.layer_blocks\.(\d)\.0\.", "fpn.conv_<1+3>."),
    (r"^backbone\.fpn\.extra_blocks\.p(\d)\.", "fpn.conv_out<1>."),
    *_towers("head.cls_conv.", "head.reg_conv."),
    *_outputs("head.cls_logits.", "head.reg_pred.", "head.cnt_logits."),
)

CHECKPOINT_FORMATS = (
    CheckpointFormat(
        "official",
        presets=("official-improved", "official"),
        marker=r"^rpn\.head\.",
        renames=(
            (r"^backbone\.body\.(conv1|bn1)\.", "backbone.body.stem.<1>."),
            (r"^backbone\.fpn\.inner_blocks\.(\d)\.0\.", "backbone.fpn.fpn_inner<1+2>."),
            (r"^backbone\.fpn\.layer_blocks\.(\d)\.0\.", "backbone.fpn.fpn_layer<1+2>."),
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
        # what AdelaiDet's own script makes of an official checkpoint
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
            (r"^backbone\.fpn\.inner_blocks\.(\d)\.0\.", "neck.lateral_convs.<1>.conv."),
            (r"^backbone\.fpn\.layer_blocks\.(\d)\.0\.", "neck.fpn_convs.<1>.conv."),
            (r"^backbone\.fpn\.extra_blocks\.p6\.", "neck.fpn_convs.3.conv."),
            (r"^backbone\.fpn\.extra_blocks\.p7\.", "neck.fpn_convs.4.conv."),
            *_towers("bbox_head.cls_convs.", "bbox_head.reg_convs."),
            *((rf"(bbox_head\...._convs)\.{3 * k}\.", f"<1>.[{k}].conv.") for k in range(_MOST_CONVS)),
            *((rf"(bbox_head\...._convs)\.{3 * k + 1}\.", f"<1>.[{k}].gn.") for k in range(_MOST_CONVS)),
            (r"_convs\.\[(\d)\]", "_convs.<1>"),
            (r"(conv2|_convs\.\d\.conv)\.conv\.", "<1>."),  # deformable
            (r"(conv2|_convs\.\d\.conv)\.offset\.", "<1>.conv_offset."),
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
            (r"^(backbone\..*conv\d)\.weight$", "<1>.layer.0.weight"),
            (r"^(backbone\.(?:layer.*\.)?)bn(\d)\.", "<1>conv<2>.layer.1."),
            (r"^(backbone\.layer.*)\.downsample\.", "<1>.downsample_conv.layer."),
            (r"^backbone\.fpn\.inner_blocks\.(\d)\.0\.", "fpn.P<1+3>_1."),
            (r"^backbone\.fpn\.layer_blocks\.(\d)\.0\.", "fpn.P<1+3>_2."),
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
"""Every format that is read and written."""


def find_format(name: str) -> CheckpointFormat:
    """The format called ``name``; a ValueError with the nearest names where there is none."""
    for format in CHECKPOINT_FORMATS:
        if format.name == name:
            return format
    raise unknown_name("format", name, (format.name for format in CHECKPOINT_FORMATS))


def recognise(keys: Iterable[str]) -> CheckpointFormat | None:
    """The format that has parameters of these names (without ``module.``), or None."""
    keys = list(keys)
    for format in CHECKPOINT_FORMATS:
        if any(re.search(format.marker, key) for key in keys):
            return format
    return None


def without_wrapping(checkpoint: Mapping) -> dict[str, Tensor]:
    """The parameters of a loaded checkpoint file, without what DataParallel puts before their names.

    They are the file itself, or under ``model``, ``state_dict`` or ``model_state_dict``.
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
    """The parameters of a checkpoint in our names and forms.

    Args:
        state: of :func:`without_wrapping`.
        format: that it has.
        own: state dict of the model that is to load them, which gives names and shapes; it may lie on ``meta``.

    Raises:
        ValueError: parameters are left over, missing or of another shape; the message lists them.
    """
    problems = differences(state, format, own)
    if any(problems.values()):
        told = "; ".join(f"{what}: {', '.join(names)}" for what, names in problems.items() if names)
        raise ValueError(f"the {format.name} checkpoint does not fit the model; {told}")
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
    """Where a checkpoint differs from what a model would load: names ``missing``, ``left over``, ``of another shape``.

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
    """Our parameters in the names and forms of ``format``: what :func:`from_format` undoes."""
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
    """The parameters of a checkpoint, older and other names of its format replaced by those that ``renames`` give."""

    def present(key: str) -> str:
        for pattern, replacement in format.aliases:
            key = re.sub(pattern, replacement, key)
        return key

    return _named_darknet({present(key): value for key, value in state.items()})


def _named_darknet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With our names for the layers of a notebook's DarkNet19, ``backbone.block1.0.weight`` and so on."""
    blocks = {
        key: found[1] for key in state if (found := re.match(r"((?:fcos_body\.)?backbone\.)block\d", key))
    }
    if not blocks:
        return state
    prefix = next(iter(blocks.values()))
    layers = read_in_order({key: state[key] for key in blocks})
    others = {key: value for key, value in state.items() if key not in blocks}
    return others | {prefix + key: value for key, value in layers.items()}
