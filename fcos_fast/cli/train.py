"""``fcos-fast train``: start a new run from options and YAML, or resume an interrupted one."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TypeVar

import yaml

import fcos_fast.configs
from fcos_fast.cli.options import Preset, config_file, parse_options
from fcos_fast.cli.suggest import did_you_mean
from fcos_fast.engine.config import Config
from fcos_fast.models import PRESETS, SIZES, DetectorConfig
from fcos_fast.models.config import CONFIGS
from fcos_fast.models.recommended import ModelSize

RECIPES = {path.stem: path for path in sorted(Path(fcos_fast.configs.__path__[0]).glob("*.yaml"))}
"""Configurations that come with the package, by the name that ``--config`` accepts."""

COMMON = (
    *("config", "data.root", "data.train", "data.val", "size", "preset", "model.backbone"),
    *(
        "train.weights",
        "train.epochs",
        "train.batch_size",
        "optimizer.lr",
        "train.device",
        "train.name",
        "resume",
    ),
)
"""Options that the help lists first."""

SHORT = {"--weights": "--train.weights"}
"""Short forms of options on the command line."""

DETECTORS: dict[str, Mapping[str, DetectorConfig]] = {"size": SIZES, "preset": PRESETS}
"""The options that choose a detector, and their values."""

DEFAULT_SIZE = "small"
"""The detector if neither ``--size`` nor ``--preset`` is given."""

OF_A_SIZE = ("backbone", "fpn_channels", "head_channels", "head_convs", "min_size", "max_size")
"""Fields of the model by which sizes differ."""


@dataclass(frozen=True)
class TrainOptions(Config):
    """Train a detector, or resume a run.

      fcos-fast train --size small --data.root FOLDER
      fcos-fast train --resume runs/train

    Attributes:
        size: detector whose values are the defaults of the ``model`` options: backbone, head and input size that go
            together. Without this and ``preset`` it is the detector of a checkpoint given as ``train.weights``, or
            small.
        preset: published detector whose values are the defaults instead.
        resume: folder of a run to continue with its own configuration. The only other options accepted are those that
            do not change its result, such as ``data.root``, ``train.epochs``, ``train.device`` and ``data.workers``.
    """

    size: ModelSize | None = None
    preset: Preset | None = None
    resume: str | None = None

    def config(self) -> Config:
        """The configuration of the run."""
        return Config(**{field.name: getattr(self, field.name) for field in fields(Config)})


AnyTrainOptions = TypeVar("AnyTrainOptions", bound=TrainOptions)


def main(arguments: Sequence[str]) -> int:
    """Run ``fcos-fast train``."""
    config = None if run_to_resume(arguments) else parse_train_options(arguments).config()

    from fcos_fast.cli.train_run import run

    run(arguments, config)
    return 0


def run_to_resume(arguments: Sequence[str]) -> str | None:
    """The folder that ``--resume`` names."""
    return dict(_choices_in(arguments)).get("resume")


def parse_train_options(arguments: Sequence[str], run: Config | None = None) -> TrainOptions:
    """Parse the options of ``fcos-fast train``; the configuration of a ``run`` replaces the defaults."""
    return parse_with_model(TrainOptions, "train", arguments, COMMON, run)


def parse_with_model(
    kind: type[AnyTrainOptions],
    subcommand: str,
    arguments: Sequence[str],
    common: Sequence[str],
    run: Config | None = None,
) -> AnyTrainOptions:
    """Parse options whose group ``model`` has the fields of the preset's detector, with the preset's values as
    defaults.

    Args:
        kind, subcommand, arguments, common: see :func:`fcos_fast.cli.options.parse_options`.
        run: configuration that replaces the defaults.
    """
    arguments = _in_full(arguments)
    defaults = {field.name: getattr(run or Config(), field.name) for field in fields(Config)}
    defaults["model"] = _default_model(arguments, run.model if run else None)
    return parse_options(kind, subcommand, arguments, common=common, recipes=RECIPES, defaults=defaults)


def _in_full(arguments: Sequence[str]) -> list[str]:
    """The arguments with the full names of :data:`SHORT` options."""
    parts = [argument.partition("=") for argument in arguments]
    return [SHORT.get(name, name) + equals + value for name, equals, value in parts]


def _default_model(arguments: Sequence[str], model: DetectorConfig | None) -> DetectorConfig:
    """The configuration that the options under ``model`` change. Its type decides which options there are, so it must
    be known before they are parsed.

    Args:
        arguments: the command line.
        model: configuration of a run; None: that of a checkpoint to start from, or of :data:`DEFAULT_SIZE`.

    Raises:
        ValueError: an unknown size or preset; both, or a size beside a file whose model has another one.
    """
    choices = _choices_in(arguments)
    given = dict(choices)
    if "size" in given and "preset" in given:
        raise ValueError(
            f"--size {given['size']} and --preset {given['preset']} both choose the detector; give one of them"
        )
    if "size" in given and given.get("fields"):
        raise ValueError(
            f"--size {given['size']} and a file with {given['fields']} both choose the detector; give one of them"
        )
    if model is None and "weights" in given and not given.keys() & {"size", "preset", "detector", "fields"}:
        model = _model_of_checkpoint(given["weights"])
    model = model or SIZES[DEFAULT_SIZE]
    for name, value in choices:
        if name in DETECTORS:
            if value not in DETECTORS[name]:
                raise ValueError(f"--{name} cannot be {value!r}{did_you_mean(value, DETECTORS[name])}")
            model = DETECTORS[name][value]
        elif name == "detector" and value in CONFIGS and not isinstance(model, CONFIGS[value]):
            model = CONFIGS[value]()
    return model


def _model_of_checkpoint(weights: str) -> DetectorConfig | None:
    """The configuration of the detector in the file ``weights``; None if it is no file, or has a backbone only."""
    if not Path(weights).is_file():
        return None
    from fcos_fast.engine.checkpoint import is_detector, read_checkpoint  # needs torch

    if not is_detector(weights):
        return None
    return DetectorConfig.from_dict(read_checkpoint(weights)[0]["model_config"])


def _choices_in(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """The sizes, presets, detectors, weights and runs to resume that the command line and its YAML files name, in
    order; and as ``fields`` the model's fields in a file that a size contradicts."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)

    def add(option: str, read: Callable[[str], list[tuple[str, str]]]) -> None:
        parser.add_argument(
            option, dest="choices", action="extend", nargs="?", const=[], default=[], type=read
        )

    add("--size", lambda value: [] if value == "null" else [("size", value)])
    add("--preset", lambda value: [] if value == "null" else [("preset", value)])
    add("--train.weights", lambda value: [("weights", value)])
    add("--resume", lambda value: [("resume", value)])
    add("--model.detector", lambda value: [("detector", value)])
    add("--config", _choices_in_file)
    choices: list[tuple[str, str]] = parser.parse_known_args(list(arguments))[0].choices
    return choices


def _choices_in_file(name: str) -> list[tuple[str, str]]:
    try:
        content = yaml.safe_load(config_file(name, RECIPES).read_text(encoding="utf-8"))
    except (yaml.YAMLError, RecursionError, ValueError):
        return []  # the parser of the options says what is wrong
    content = content if isinstance(content, dict) else {}
    model, train = (
        group if isinstance(group, dict) else {} for group in map(content.get, ("model", "train"))
    )
    named = {name: content.get(name) for name in ("size", "preset", "resume")}
    named["detector"] = model.get("detector")
    named["weights"] = train.get("weights")
    if named["size"] is None:
        named["fields"] = ", ".join(f"model.{name}" for name in OF_A_SIZE if name in model) or None
    return [(name, str(value)) for name, value in named.items() if value is not None]
