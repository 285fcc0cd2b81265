"""``fcos-fast train``: a new run from options and YAML, or an interrupted one resumed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Literal

import yaml

import fcos_fast.configs
from fcos_fast.cli.options import parse_options
from fcos_fast.engine.config import Config
from fcos_fast.models import PRESETS, DetectorConfig
from fcos_fast.models.config import CONFIGS

RECIPES = {path.stem: path for path in sorted(Path(fcos_fast.configs.__path__[0]).glob("*.yaml"))}
"""Configurations that come with the package, by the name that ``--config`` knows them by."""


@dataclass(frozen=True)
class TrainOptions(Config):
    """Train a detector.

    Attributes:
        preset: published detector that the options under ``model`` begin with.
        resume: folder of a run, to continue with its own configuration. Options that do not change what it computes
            can be given too: where the data set lies, more epochs, device, workers.
    """

    preset: Literal[tuple(PRESETS)] = "official-improved"
    resume: str | None = None

    def config(self) -> Config:
        """The configuration of the run."""
        return Config(**{field.name: getattr(self, field.name) for field in fields(Config)})


def main(arguments: Sequence[str]) -> int:
    """Run the subcommand with these arguments and return its exit status."""
    folder = dict(_words(arguments)).get("resume")
    config = parse_train_options(arguments).config() if folder is None else None

    from fcos_fast.cli.outcome import present
    from fcos_fast.engine.distributed import rank
    from fcos_fast.engine.train import resume, train

    if folder is None:
        outcome = train(config)
    else:
        outcome = resume(folder, lambda run: parse_train_options(arguments, run=run).config())
    if rank() == 0:
        present(outcome)
    return 0


def parse_train_options(
    arguments: Sequence[str],
    kind: type[TrainOptions] = TrainOptions,
    subcommand: str = "train",
    run: Config | None = None,
) -> TrainOptions:
    """The options, whose ``model`` has the fields of the preset's detector and begins with the preset's values.

    With a ``run``, all options begin with the values of its configuration.
    """
    run = run or Config()
    first = {f.name: getattr(run, f.name) for f in fields(Config)} | {
        "model": _first_model(arguments, run.model)
    }
    options = make_dataclass(
        kind.__name__,
        [
            (name, type(value), field(default_factory=lambda value=value: value))
            for name, value in first.items()
        ],
        bases=(kind,),
        namespace={"__doc__": kind.__doc__},
        frozen=True,
    )
    return parse_options(options, subcommand, arguments, recipes=RECIPES)


def _first_model(arguments: Sequence[str], model: DetectorConfig) -> DetectorConfig:
    """What the options under ``model`` begin with; which options there are depends on it."""
    for name, value in _words(arguments):
        if name == "preset":
            model = PRESETS.get(value, model)
        elif name == "detector" and value in CONFIGS and value != model.detector:
            model = CONFIGS[value]()
    return model


def _words(arguments: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Presets, detectors and runs to resume that the command line and its YAML files name, in their order."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        option, _, value = argument.partition("=") if argument.startswith("--") else (before, "", argument)
        if option in ("--preset", "--resume"):
            yield option.removeprefix("--"), value
        elif option == "--model.detector":
            yield "detector", value
        elif option == "--config" and (Path(value).is_file() or value in RECIPES):
            file = Path(value) if Path(value).is_file() else RECIPES[value]
            try:
                written = yaml.safe_load(file.read_text(encoding="utf-8"))
            except (yaml.YAMLError, RecursionError, ValueError):
                continue  # the parser of the options says what is wrong with it
            written = written if isinstance(written, dict) else {}
            model = written.get("model")
            yield "preset", str(written.get("preset"))
            if written.get("resume") is not None:
                yield "resume", str(written["resume"])
            yield "detector", str(model.get("detector") if isinstance(model, dict) else None)
