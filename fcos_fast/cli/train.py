"""``fcos-fast train``: a new run from options and YAML, or an interrupted one resumed."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import fcos_fast.configs
from fcos_fast.cli.options import parse_options
from fcos_fast.engine.config import Config, to_plain
from fcos_fast.engine.distributed import rank
from fcos_fast.engine.report import write_report
from fcos_fast.engine.train import TrainResult, resume, train
from fcos_fast.models import PRESETS

RECIPES = {path.stem: path for path in sorted(Path(fcos_fast.configs.__path__[0]).glob("*.yaml"))}
"""Configurations that come with the package, by the name that ``--config`` knows them by."""


@dataclass(frozen=True)
class TrainOptions(Config):
    """Train a detector.

    Attributes:
        preset: published detector that the options under ``model`` begin with.
        resume: folder of an interrupted run, to continue with its own configuration.
    """

    preset: Literal[tuple(PRESETS)] = "official-improved"
    resume: str | None = None

    def config(self) -> Config:
        """The configuration of the run."""
        return Config(**{field.name: getattr(self, field.name) for field in fields(Config)})


def main(arguments: Sequence[str]) -> int:
    """Run the verb; its exit status."""
    options = parse_train_options(arguments)
    if options.resume is None:
        outcome = train(options.config())
    elif any(word.startswith("--") and not word.startswith("--resume") for word in arguments):
        raise ValueError("--resume continues with the run's own configuration; leave the other options out")
    else:
        outcome = resume(options.resume)
    if rank() == 0:
        present(outcome)
    return 0


def parse_train_options(arguments: Sequence[str]) -> TrainOptions:
    """The options, whose ``model`` begins with the fields of the preset."""
    options = parse_options(TrainOptions, "train", arguments, recipes=RECIPES)
    if options.preset == "official-improved":
        return options
    defaults = _dotted({"model": to_plain(PRESETS[options.preset])})
    return parse_options(TrainOptions, "train", arguments, defaults=defaults, recipes=RECIPES)


def present(outcome: TrainResult) -> None:
    """Write the report of a finished run, and say what came out and where it is."""
    folder = outcome.folder
    checkpoint = shlex.quote(str(folder / "best.pt"))
    if outcome.result is not None:
        config = (folder / "config.yaml").read_text(encoding="utf-8")
        title = f"{type(outcome.model).__name__} on {outcome.config.data.root}"
        page = write_report(
            folder, title, outcome.val_set, outcome.detections, outcome.result, {"Configuration": config}
        )
        print(f"\n{outcome.result.table()}\n\nreport   {page}\nsheet    {folder / 'sheet.png'}")
    print(f"detect   fcos-fast detect --checkpoint {checkpoint} IMAGES_OR_FOLDERS")


def _dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    dotted = {}
    for name, value in values.items():
        dotted |= _dotted(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return dotted
