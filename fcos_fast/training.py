"""``fcos_fast.train``: the command ``fcos-fast train`` as a function."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcos_fast.cli.option_list import options_of
from fcos_fast.cli.suggest import meant_by, with_last_part
from fcos_fast.cli.train import TrainOptions, parse_train_options
from fcos_fast.engine.config import Config, DataConfig
from fcos_fast.models.config import CONFIGS
from fcos_fast.serialize import to_plain
from fcos_fast.suggest import did_you_mean

if TYPE_CHECKING:
    from fcos_fast.engine.callbacks import Callback
    from fcos_fast.engine.train import TrainResult


def train(
    data: str | Path | DataConfig | dict[str, Any] | None = None,
    config: str | Path | Config | None = None,
    *,
    callbacks: Sequence[Callback] = (),
    resume: str | Path | None = None,
    **options: Any,
) -> TrainResult:
    """Train a detector, or resume a run, exactly as ``fcos-fast train`` does; writes the report of the run too.

    Args:
        data: ``data.root``: folder of the dataset (VOC, COCO or YOLO), ``data.yaml`` or COCO JSON file; or the whole
            group ``data``.
        config: name of a recipe (``"small"``), path of a YAML file, or a configuration.
        callbacks: instances of subclasses of :class:`fcos_fast.Callback`.
        resume: folder of a run to continue.
        **options: any option of the command line: by its full name, ``**{"optimizer.lr": 0.01}``, as a group,
            ``optimizer={"lr": 0.01}`` or ``augment=AugmentConfig(...)``, or by its last part, ``epochs=20``, which
            means ``train.epochs`` if there is one and otherwise the only option that ends so.

    Returns:
        Folder, model and average precision.

    Raises:
        ValueError: unknown option, with the nearest names; invalid value or dataset.
        NonFiniteLossError: a loss or a gradient is not finite; the message names the cause.
        TrainingInterrupted: Ctrl-C.

    Example:
        >>> result = fcos_fast.train("DATA", config="small", epochs=20, lr=0.0005)
        >>> result.folder, result.result.ap
    """
    base = config if isinstance(config, Config) else None
    if base is not None and resume is not None:
        raise ValueError(
            f"config is a Config, but the run in {resume} keeps its own; give the options that change, such as epochs"
        )
    arguments = [] if config is None or base is not None else [f"--config={config}"]
    arguments += [f"--resume={resume}"] if resume is not None else []
    if data is not None:
        options["data.root" if isinstance(data, (str, Path)) else "data"] = data
    for name, value in options.items():
        arguments += [f"--{full}={_text(full, v)}" for full, v in _flat(_full_name(name, base), value)]
    options_of_run = None if resume is not None else parse_train_options(arguments, base).config()

    from fcos_fast.cli.train_run import run  # needs torch, and the options do not

    return run(arguments, options_of_run, callbacks)


def _full_name(name: str, base: Config | None) -> str:
    """The dotted name of an option that is given by its last part."""
    if "." in name or name in (f.name for f in fields(TrainOptions)):
        return name
    models = [detector() for detector in CONFIGS.values()] if base is None else [base.model]
    known = {option.name: None for model in models for option in options_of(TrainOptions, {"model": model})}
    if f"train.{name}" in known:
        return f"train.{name}"
    found = with_last_part(name, list(known))
    if len(found) > 1:
        raise ValueError(
            f"option {name} can mean {' or '.join(found)}; give one of them: **{{'{found[0]}': ...}}"
        )
    if not found:
        near = " or ".join(map(repr, meant_by(name, list(known))))
        hint = f"did you mean {near}?" if near else did_you_mean(name, known)
        raise ValueError(f"unknown option {name}; {hint or 'fcos-fast train --help all lists the options'}")
    return found[0]


def _flat(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """The options in a group, by dotted name."""
    if is_dataclass(value) and not isinstance(value, type):
        value = to_plain(value)
    if not isinstance(value, dict):
        yield name, value
        return
    for key, item in value.items():
        yield from _flat(f"{name}.{key}", item)


def _text(name: str, value: Any) -> str:
    """A value as the command line has it.

    Raises:
        ValueError: it is no number, string, path, list or None.
    """
    if isinstance(value, (str, Path)):
        return str(value)
    try:
        return json.dumps(value, default=lambda v: v.tolist() if hasattr(v, "tolist") else str(Path(v)))
    except TypeError:
        raise ValueError(
            f"{name} cannot be {value!r}; expected a number, string, path, list, dict, dataclass or None"
        ) from None
