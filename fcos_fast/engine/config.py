"""The configuration of a run: dataclasses, filled from Python, YAML, the command line or a checkpoint.

Needs no torch, which takes seconds to import: the command line checks its options before.
"""

from __future__ import annotations

import math
from dataclasses import Field, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

import fcos_fast.data
from fcos_fast.data import AugmentConfig
from fcos_fast.data.checks import MAX_PIXELS
from fcos_fast.engine.files import write_text
from fcos_fast.engine.schedule import ScheduleConfig
from fcos_fast.fields import at_least, between, check_fields, checked, positive
from fcos_fast.models.config import DetectorConfig, FCOSConfig
from fcos_fast.precision import Precision
from fcos_fast.serialize import to_plain

MAY_CHANGE = "may change on resume"


def _may_change(default: Any) -> Any:
    """A field, or one with a rule, that a resumed run may change: it does not influence the result, only where and how
    fast it is computed, how long the run goes on, or what is recorded."""
    metadata = {MAY_CHANGE: True}
    if isinstance(default, Field):
        return field(default=default.default, metadata=metadata | dict(default.metadata))
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class DataConfig:
    """The dataset and how it is read.

    Attributes:
        root: folder of the dataset (VOC, COCO or YOLO; detected), ``data.yaml`` or COCO JSON file. A run stores the
            absolute path.
        train: split to train on; empty uses all images.
        val: split to evaluate on; empty disables evaluation.
        classes: class names in the order of their labels, for example ``[cat,dog]``; by default the classes of the
            training split, sorted.
        strict: make invalid boxes (zero area, outside the image, NaN) errors instead of skipping them.
        allow_outside: accept paths in COCO and YOLO files that lead outside ``root``. An untrusted dataset could name
            any image on this machine.
        max_pixels: images with more pixels are rejected: a small file can decode to more than fits in memory.
        workers: processes that read, augment and batch images during training; 0 does so in the main process. By
            default 0 without a GPU; with one, the number of available CPU cores, at most 8.
        group_by_aspect_ratio: batch images of similar aspect ratio, which need little padding. By default
            true unless ``augment.size`` gives all images one size.
        repeat_threshold: show images of rare classes several times per epoch (repeat-factor sampling of LVIS): those of
            a class that is in less than this fraction of the images, on average ``sqrt(repeat_threshold / fraction)``
            times. LVIS: 0.001. 0 shows every image once.
    """

    root: str = _may_change("")
    train: str = "train"
    val: str = "val"
    classes: tuple[str, ...] | None = None
    strict: bool = _may_change(False)
    allow_outside: bool = _may_change(False)
    max_pixels: int = _may_change(positive(MAX_PIXELS))
    workers: int | None = _may_change(None)
    group_by_aspect_ratio: bool | None = None
    repeat_threshold: float = between(0.0, 0, 1)

    def __post_init__(self) -> None:
        check_fields(self, "data.")

    def load(
        self, split: str, categories: fcos_fast.data.Categories | None = None
    ) -> fcos_fast.data.DetectionDataset:
        """Load a split; empty: all images. Errors as :func:`fcos_fast.data.load_dataset`."""
        from fcos_fast.data import load_dataset  # needs torch

        return load_dataset(
            self.root,
            split or None,
            categories,
            strict=self.strict,
            allow_outside=self.allow_outside,
            max_pixels=self.max_pixels,
        )


@dataclass(frozen=True)
class TrainConfig:
    """The training run.

    Attributes:
        epochs: passes over the training split; a resumed run can have more.
        steps: optimizer steps, instead of ``epochs``; the last epoch may be partial.
        batch_size: images per step, over all processes together. Learning rate, schedule and number of steps do not
            depend on the number of processes. ``auto``: on a GPU, the largest batch that fits 80 % of its free memory,
            found by trial steps; on a CPU 8, because larger ones are not faster there. An epoch then has at least 16
            steps, if the images suffice.
        accumulate: compute each batch in this many equal parts, one after the other, which needs less memory. The
            gradient is that of the whole batch; only batch norms (``model.norm`` ``batch``) see each part by itself.
        seed: seed of the initial weights, the order of the images and their augmentation.
        device: ``auto`` (CUDA if available), ``cpu``, ``cuda`` or ``cuda:1``.
        precision: ``float32``, ``bfloat16`` (autocast), or ``auto``: bfloat16 on devices with fast bfloat16, otherwise
            float32.
        compile: compile network and losses into one graph (torch.compile). Compilation takes a minute or more, once for
            the first image size and once for all others.
        cuda_graphs: on a GPU, record the whole step once per image size and replay it, so that the host does almost
            nothing. Useful with few image sizes, as with ``augment.size``.
        sync_batch_norm: with several processes on GPUs and ``model.norm`` ``batch``, compute the statistics of batch
            norm over the images of all processes. Otherwise each process normalizes its own images, and rank 0's
            running statistics are kept.
        winograd: compute float32 3x3 convolutions with 64 channels or more on a CPU by Winograd's method, which needs
            fewer multiplications and changes the last digits.
        channels_last: store activations in channels-last memory format, which convolutions on CPUs and tensor cores
            prefer.
        ema_decay: decay of the moving average (EMA) of the weights. The averaged weights are evaluated and saved in
            best.pt. 0 disables EMA.
        evaluate_every: epochs between evaluations; the last epoch is always evaluated.
        patience: stop after this many evaluations in a row without a better average precision; 0 or null: never.
        weights: what the run starts from; ``--weights`` for short. ``auto``: the backbone's weights of torchvision or
            timm, pretrained on ImageNet and downloaded once; or random weights, if none fit or the download fails.
            ``none`` or null: random weights. A file: a checkpoint, whose classes are matched by name, or a backbone's
            weights (``.pth``, ``.safetensors``). A name: ``ResNet50_Weights.IMAGENET1K_V1`` (torchvision),
            ``timm:resnet50.a1_in1k``.
        runs: parent of the run's folder.
        name: name of the run's folder; a number is appended if it exists.
        loggers: also log losses and metrics to ``tensorboard`` (in the run's folder), ``wandb`` or ``mlflow``, for
            example ``[tensorboard,wandb]``. The last two are configured by their own environment variables and need
            the extra ``loggers``.
        output: ``normal``, ``quiet`` (only warnings and errors) or ``json`` (one JSON object per line on stdout). The
            run's folder has everything in ``train.log``.
    """

    epochs: int = _may_change(positive(50))
    steps: int | None = _may_change(checked(None, lambda n: n is None or n > 0, "a positive integer or None"))
    batch_size: int | Literal["auto"] = checked(
        8, lambda n: n == "auto" or n > 0, "a positive integer or auto"
    )
    accumulate: int = positive(1)
    seed: int = 0
    device: str = _may_change("auto")
    precision: Precision = "auto"
    compile: bool = _may_change(False)
    cuda_graphs: bool = _may_change(False)
    sync_batch_norm: bool = False
    winograd: bool = _may_change(True)
    channels_last: bool = _may_change(True)
    ema_decay: float = checked(0.998, lambda decay: 0 <= decay < 1, "at least 0 and below 1")
    evaluate_every: int = _may_change(positive(1))
    patience: int | None = _may_change(checked(None, lambda n: n is None or n >= 0, "0 or more, or None"))
    weights: str | None = "auto"
    runs: str = "runs"
    name: str = "train"
    loggers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = _may_change(())
    output: Literal["normal", "quiet", "json"] = _may_change("normal")

    def __post_init__(self) -> None:
        check_fields(self, "train.")
        if self.weights == "":
            raise ValueError("train.weights is empty; expected auto, none, a file or the name of weights")
        object.__setattr__(self, "weights", self.weights or "none")

    @property
    def images_per_step(self) -> int:
        """``batch_size`` as a number, which every run has after its start.

        Raises:
            ValueError: it is still ``auto``.
        """
        if self.batch_size == "auto":
            raise ValueError("train.batch_size is auto; fcos_fast.engine.train.train replaces it by a number")
        return self.batch_size

    def total_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the run."""
        return self.epochs * steps_per_epoch if self.steps is None else self.steps

    def total_epochs(self, steps_per_epoch: int) -> int:
        """Passes over the training split; the last may be partial."""
        return math.ceil(self.total_steps(steps_per_epoch) / steps_per_epoch)


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer: SGD with momentum, or AdamW (Loshchilov and Hutter, 2019).

    Attributes:
        name: which of the two.
        lr: base learning rate, which the schedule multiplies by its factor.
        momentum: momentum of SGD.
        betas: decay rates of AdamW's two moving averages.
        weight_decay: weight decay of weight matrices and convolution kernels.
        decay_norm: apply weight decay to normalization layers too, as official FCOS and torchvision's script do.
        decay_bias: apply weight decay to biases too, as torchvision's script does.
        bias_lr_factor: learning rate of biases relative to ``lr``; 2 in official FCOS.
        clip_norm: maximum norm of the gradient of all parameters together; 0 disables clipping.
    """

    name: Literal["sgd", "adamw"] = "adamw"
    lr: float = positive(1e-3)
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = at_least(0.05, 0)
    decay_norm: bool = False
    decay_bias: bool = False
    bias_lr_factor: float = 1.0
    clip_norm: float = at_least(10.0, 0)

    def __post_init__(self) -> None:
        check_fields(self, "optimizer.")


@dataclass(frozen=True)
class Config:
    """The configuration of a training run."""

    data: DataConfig = field(default_factory=DataConfig)
    model: DetectorConfig = field(default_factory=FCOSConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def without_old_options(values: dict[str, Any]) -> dict[str, Any]:
    """The plain values of a :class:`Config` with ``train.weights`` in place of the three options of older versions, and
    ``train.loggers`` in place of ``train.tensorboard``."""
    train = values.get("train")
    if not isinstance(train, dict):
        return values
    train = dict(train)
    if train.pop("tensorboard", False):
        train["loggers"] = ["tensorboard"]
    backbone, _ = train.pop("backbone_weights", None), train.pop("new_classes", None)
    if "weights" not in train and backbone is None:
        return values | {"train": train}
    return values | {"train": train | {"weights": train.get("weights") or backbone or "none"}}


def save_config(config: Config, path: str | Path) -> None:
    """Write a configuration as YAML that ``fcos-fast train --config`` reads."""
    write_text(path, yaml.safe_dump(to_plain(config), sort_keys=False))
