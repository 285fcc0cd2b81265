"""The configuration of a run: plain dataclasses, the same from Python, YAML, the command line and a checkpoint.

The command line reads it before it imports torch.
"""

from __future__ import annotations

import math
import types
import typing
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

import fcos_fast.data
from fcos_fast.data import AugmentConfig
from fcos_fast.data.checks import MAX_PIXELS
from fcos_fast.engine.files import write_text
from fcos_fast.engine.schedule import ScheduleConfig
from fcos_fast.models.config import DetectorConfig, FCOSConfig
from fcos_fast.precision import Precision
from fcos_fast.suggest import unknown_name


def _may_change(default: Any) -> Any:
    """A field that a resumed run may give another value: it does not decide what the run arrives at, but where and how
    fast it is computed, how long it goes on, or what is recorded of it."""
    return field(default=default, metadata={MAY_CHANGE: True})


MAY_CHANGE = "may change on resume"


@dataclass(frozen=True)
class DataConfig:
    """Where the images are.

    Attributes:
        root: folder of the data set; its dataset format is recognised. A run keeps its absolute path.
        train: split to train on; an empty name takes every image.
        val: split to evaluate on; an empty name does without evaluation.
        classes: names of the classes in the order of their labels; by default those that occur in the training
            split, sorted.
        strict: refuse boxes without an area or outside their image instead of leaving them out.
        allow_outside: follow paths in COCO and YOLO files that lead outside ``root``; a data set from elsewhere could
            name any image of this machine.
        max_pixels: a larger image is refused, because a small file can hold more pixels than memory does.
        workers: processes that read, augment and pack images beside the training; 0 does it in between. By default
            0 without a GPU; with one, as many as there are free processors, 8 at most.
        group_by_aspect_ratio: make batches of images of similar aspect ratio, which need little padding. By default
            where ``augment.size`` does not give all images one size.
    """

    root: str = _may_change("")
    train: str = "train"
    val: str = "val"
    classes: tuple[str, ...] | None = None
    strict: bool = _may_change(False)
    allow_outside: bool = _may_change(False)
    max_pixels: int = _may_change(MAX_PIXELS)
    workers: int | None = _may_change(None)
    group_by_aspect_ratio: bool | None = None

    def __post_init__(self) -> None:
        if self.max_pixels < 1:
            raise ValueError(f"data.max_pixels is {self.max_pixels}; it must be 1 or more")

    def load(
        self, split: str, categories: fcos_fast.data.Categories | None = None
    ) -> fcos_fast.data.DetectionDataset:
        """Read a split; an empty name takes every image. Errors as :func:`fcos_fast.data.load_dataset`."""
        from fcos_fast.data import load_dataset  # options are read without what a data set needs

        return load_dataset(
            self.root, split or None, categories, self.strict, self.allow_outside, self.max_pixels
        )


@dataclass(frozen=True)
class TrainConfig:
    """The course of a run.

    Attributes:
        epochs: passes over the training split; a resumed run may have more.
        steps: optimizer steps instead, as many recipes count; the last pass may end early. By default ``epochs``
            decides.
        batch_size: images per step, over all processes. Learning rate, schedule and number of steps belong to it,
            whatever the number of processes.
        seed: of the first weights, the order of the images and their augmentation.
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda``, ``cuda:1``.
        precision: ``bfloat16`` (autocast), ``float32``, or ``auto``: bfloat16 where the machine is fast at it.
        compile: compile network and losses into one graph (torch.compile), for a minute at the start of a run and
            again where a second image size comes.
        cuda_graphs: on a GPU, record the whole step once per image size and replay it, so that the host has next to
            nothing to do. Worth it where few sizes occur, as with ``augment.size``.
        sync_batch_norm: with several processes on GPUs and ``model.norm`` ``batch``, take the statistics of batch norm
            over the images of all processes. Otherwise each process normalises its own share, and the running
            statistics are those of rank 0.
        winograd: on a CPU in float32, compute 3x3 convolutions with 128 channels or more by Winograd's method, which
            multiplies a quarter as often; it changes the last digits. Elsewhere it does nothing.
        channels_last: keep activations with the channels innermost, which convolutions on CPUs and tensor cores want.
        ema_decay: of the moving average of the weights, which is evaluated and stored as the best; 0 does without.
        evaluate_every: epochs between evaluations; the last epoch is always evaluated.
        weights: checkpoint to begin from instead of random weights.
        backbone_weights: weights that the backbone begins with: a file of a classification model (``.pth``,
            ``.safetensors``), or the name of weights to download: torchvision's, as
            ``ResNet50_Weights.IMAGENET1K_V1``; timm's, as ``timm:resnet50.a1_in1k``; ``timm`` for those of a backbone
            of timm. Made for ``model.norm`` ``frozen`` or ``batch``.
        new_classes: take everything from ``weights`` but the classification layer, for a data set of other classes.
        runs: folder in which the folder of the run is made.
        name: of the run's folder; a number is added where there is one already.
        tensorboard: write the metrics for TensorBoard too.
    """

    epochs: int = _may_change(50)
    steps: int | None = _may_change(None)
    batch_size: int = 8
    seed: int = 0
    device: str = _may_change("auto")
    precision: Precision = "auto"
    compile: bool = _may_change(False)
    cuda_graphs: bool = _may_change(False)
    sync_batch_norm: bool = False
    winograd: bool = _may_change(True)
    channels_last: bool = _may_change(True)
    ema_decay: float = 0.998
    evaluate_every: int = _may_change(1)
    weights: str | None = None
    backbone_weights: str | None = None
    new_classes: bool = False
    runs: str = "runs"
    name: str = "train"
    tensorboard: bool = _may_change(False)

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"train.{name} is {getattr(self, name)}; it must be 1 or more")
        if self.weights and self.backbone_weights:
            raise ValueError("train.weights has a backbone already; leave train.backbone_weights out")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"train.steps is {self.steps}; it must be 1 or more")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"train.ema_decay is {self.ema_decay}; it must be at least 0 and below 1")

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the run."""
        return self.epochs * steps_per_epoch if self.steps is None else self.steps

    def total_epochs(self, steps_per_epoch: int) -> int:
        """Passes over the training split, the last of which may be a part of one."""
        return math.ceil(self.total_steps(steps_per_epoch) / steps_per_epoch)


@dataclass(frozen=True)
class OptimizerConfig:
    """SGD with momentum, or AdamW (Loshchilov and Hutter, 2019).

    Attributes:
        name: ``sgd`` or ``adamw``.
        lr: base learning rate, which the schedule multiplies.
        momentum: of SGD.
        betas: of AdamW.
        weight_decay: of every weight matrix and convolution kernel.
        decay_norm: decay the weights of normalisation layers too, as official FCOS and torchvision's script do.
        decay_bias: decay biases too, as torchvision's script does.
        bias_lr_factor: learning rate of biases relative to ``lr``; official FCOS has 2.
        clip_norm: largest norm of the gradient of all parameters together; 0 does not clip.
    """

    name: Literal["sgd", "adamw"] = "adamw"
    lr: float = 1e-3
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.05
    decay_norm: bool = False
    decay_bias: bool = False
    bias_lr_factor: float = 1.0
    clip_norm: float = 10.0

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"optimizer.lr is {self.lr}; it must be positive")
        if self.weight_decay < 0 or self.clip_norm < 0:
            raise ValueError(
                f"optimizer.weight_decay is {self.weight_decay} and clip_norm {self.clip_norm}; "
                "neither can be negative"
            )


@dataclass(frozen=True)
class Config:
    """Everything that decides a training run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: DetectorConfig = field(default_factory=FCOSConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def to_plain(config: Any) -> dict[str, Any]:
    """A configuration in dictionaries, lists, numbers and strings, for YAML and checkpoints."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (tuple, list)):
            return [plain(v) for v in value]
        return value

    return plain(asdict(config))


def from_plain(kind: type, values: dict[str, Any]) -> Any:
    """Undo :func:`to_plain` for the dataclass ``kind``; fields that ``values`` lacks take their defaults.

    Raises:
        ValueError: a field that there is not, with the nearest ones.
    """
    hints = typing.get_type_hints(kind)
    known = [f.name for f in fields(kind)]
    for name in values:
        if name not in known:
            raise unknown_name(f"{kind.__name__} field", name, known)
    return kind(**{name: _typed(hints[name], value) for name, value in values.items()})


def _typed(hint: Any, value: Any) -> Any:
    if is_dataclass(hint):
        return hint.from_dict(value) if hasattr(hint, "from_dict") else from_plain(hint, value)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        hint = next((h for h in typing.get_args(hint) if h is not type(None)), hint)
    if value is not None and (typing.get_origin(hint) or hint) is tuple:
        inner = [a for a in typing.get_args(hint) if a is not Ellipsis]
        return tuple(_typed(inner[min(i, len(inner) - 1)], v) for i, v in enumerate(value))
    return value


def check_resumable(run: Config, wanted: Config) -> None:
    """Raise where ``wanted`` would make another result of a run that began as ``run``.

    Raises:
        ValueError: names each such field with both values, and says which may differ.
    """
    wrong = [
        f"--{name} {value_of_run!r} cannot become {value!r}"
        for name, (value_of_run, value, may_change) in _differences(run, wanted).items()
        if not may_change
    ]
    if wrong:
        accepted = ", ".join(f"--{name}" for name in _changeable(Config))
        raise ValueError(
            f"a resumed run keeps what decides its result: {'; '.join(wrong)}. It accepts {accepted}; for anything "
            "else start a new run, with --train.weights from this one"
        )
    if wanted.train.epochs != run.train.epochs and wanted.train.steps is not None:
        raise ValueError(
            f"--train.epochs {wanted.train.epochs}: train.steps, {wanted.train.steps}, decides the length of this run; "
            "give more --train.steps, or also --train.steps null"
        )


def _differences(a: Any, b: Any, prefix: str = "") -> dict[str, tuple[Any, Any, bool]]:
    """Dotted name of each field that differs, to both values and whether it may."""
    if type(a) is not type(b):
        return {f"{prefix}detector": (a.detector, b.detector, False)}
    found = {}
    for f in fields(a):
        x, y, name = getattr(a, f.name), getattr(b, f.name), f"{prefix}{f.name}"
        if is_dataclass(x) and is_dataclass(y):
            found |= _differences(x, y, f"{name}.")
        elif x != y:
            found[name] = (x, y, f.metadata.get(MAY_CHANGE, False))
    return found


def _changeable(kind: type, prefix: str = "") -> list[str]:
    """Dotted names of the fields that may change."""
    hints = typing.get_type_hints(kind)
    names = []
    for f in fields(kind):
        if is_dataclass(hints[f.name]):
            names += _changeable(hints[f.name], f"{prefix}{f.name}.")
        elif f.metadata.get(MAY_CHANGE):
            names.append(prefix + f.name)
    return names


def save_config(config: Config, path: str | Path) -> None:
    """Write a configuration as YAML that ``fcos-fast train --config`` reads."""
    write_text(path, yaml.safe_dump(to_plain(config), sort_keys=False))
