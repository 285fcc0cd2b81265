"""``fcos-fast train``: start a new run from options and YAML, or resume an interrupted one."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TypeVar

import yaml

import fcos_fast.configs
from fcos_fast.cli.options import Preset, config_file, parse_options
from fcos_fast.engine.config import Config
from fcos_fast.models import PRESETS, DetectorConfig
from fcos_fast.models.config import CONFIGS

RECIPES = {path.stem: path for path in sorted(Path(fcos_fast.configs.__path__[0]).glob("*.yaml"))}
"""Configurations that come with the package, by the name that ``--config`` accepts."""

COMMON = (
    *("config", "data.root", "data.train", "data.val", "preset", "model.backbone", "train.epochs"),
    *("train.batch_size", "optimizer.lr", "train.device", "train.name", "resume"),
)
"""Options that the help lists first."""


@dataclass(frozen=True)
class TrainOptions(Config):
    """Train a detector, or resume a run.

      fcos-fast train --config small --data.root FOLDER
      fcos-fast train --resume runs/train

    Attributes:
        preset: published detector whose values are the defaults of the ``model`` options.
        resume: folder of a run to continue with its own configuration. The only other options accepted are those that
            do not change its result, such as ``data.root``, ``train.epochs``, ``train.device`` and ``data.workers``.
    """

    preset: Preset = "official-improved"
    resume: str | None = None

    def config(self) -> Config:
        """The configuration of the run."""
        return Config(**{field.name: getattr(self, field.name) for field in fields(Config)})


AnyTrainOptions = TypeVar("AnyTrainOptions", bound=TrainOptions)


def main(arguments: Sequence[str]) -> int:
    """Run ``fcos-fast train``."""
    folder = dict(_choices_in(arguments)).get("resume")
    if folder is None:
        config = parse_train_options(arguments).config()

    from fcos_fast.cli.outcome import present
    from fcos_fast.engine.distributed import rank
    from fcos_fast.engine.restart import run_to_continue
    from fcos_fast.engine.train import resume, train

    if folder is not None:
        outcome = resume(folder, lambda run: parse_train_options(arguments, run=run).config())
    elif restarted := run_to_continue(config):
        outcome = resume(restarted, lambda run: replace(run, data=replace(run.data, root=config.data.root)))
    else:
        outcome = train(config)
    if rank() == 0:
        present(outcome)
    return 0


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
    run = run or Config()
    defaults = {field.name: getattr(run, field.name) for field in fields(Config)}
    defaults["model"] = _default_model(arguments, run.model)
    return parse_options(kind, subcommand, arguments, common=common, recipes=RECIPES, defaults=defaults)


def _default_model(arguments: Sequence[str], model: DetectorConfig) -> DetectorConfig:
    """The configuration that the options under ``model`` change. Its type decides which options there are, so it must
    be known before they are parsed."""
    for name, value in _choices_in(arguments):
        if name == "preset":
            model = PRESETS.get(value, model)
        elif name == "detector" and value in CONFIGS and not isinstance(model, CONFIGS[value]):
            model = CONFIGS[value]()
    return model


def _choices_in(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """The presets, detectors and runs to resume that the command line and its YAML files name, in order."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)

    def add(option: str, read: Callable[[str], list[tuple[str, str]]]) -> None:
        parser.add_argument(
            option, dest="choices", action="extend", nargs="?", const=[], default=[], type=read
        )

    add("--preset", lambda value: [("preset", value)])
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
    model = content.get("model")
    named = {"preset": content.get("preset"), "resume": content.get("resume")}
    named["detector"] = model.get("detector") if isinstance(model, dict) else None
    return [(name, str(value)) for name, value in named.items() if value is not None]
