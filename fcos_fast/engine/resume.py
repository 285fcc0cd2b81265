"""Resuming a run: load its checkpoint, check what changed, and restore its state."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from fcos_fast.engine.checkpoint import load_checkpoint
from fcos_fast.engine.config import MAY_CHANGE, Config, without_old_options
from fcos_fast.engine.distributed import broadcast, is_main
from fcos_fast.engine.run import Run
from fcos_fast.engine.run_folder import locked
from fcos_fast.serialize import field_types, from_plain


def open_run(path: Path, stack: ExitStack) -> tuple[Path, dict[str, Any], Config]:
    """The folder of a run, locked until ``stack`` closes, the content of its ``last.pt``, and the configuration in it.

    Rank 0 reads the file and sends it to all: other machines need not have the folder.

    Raises:
        FileNotFoundError: there is no such run.
        ValueError: not a checkpoint, or one that cannot be resumed.
        RunInUseError: another process is training in the folder.
    """
    content = None
    if is_main():
        if not path.exists():
            raise FileNotFoundError(f"run {path} does not exist; give the folder of a run")
        path = path / "last.pt" if path.is_dir() else path
        if path.is_file():
            stack.enter_context(locked(path.parent))
        content = path.parent, *load_run(path)
    result: tuple[Path, dict[str, Any], Config] = broadcast(content)
    return result


def load_run(path: Path) -> tuple[dict[str, Any], Config]:
    """The content of a run's ``last.pt``, and the configuration in it.

    Raises:
        ValueError: not a checkpoint, or one that cannot be resumed.
    """
    saved = load_checkpoint(path)
    if "optimizer" not in saved:
        raise ValueError(
            f"{path} contains only model weights and cannot be resumed; resume from {path.with_name('last.pt')}"
        )
    try:
        return saved, from_plain(Config, without_old_options(saved["config"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: invalid configuration: {error!r}") from error


def check_resumable(before: Config, wanted: Config) -> None:
    """Raise unless the run that started as ``before`` has the same result with ``wanted``.

    Raises:
        ValueError: lists the fields that differ, with both values, and the fields that may differ.
    """
    wrong = [
        f"--{name} {old!r} cannot become {new!r}"
        for name, (old, new, may_change) in _differences(before, wanted).items()
        if not may_change
    ]
    if wrong:
        accepted = ", ".join(f"--{name}" for name in _changeable(Config))
        raise ValueError(
            f"a resumed run keeps what decides its result: {'; '.join(wrong)}. It accepts {accepted}; for anything "
            "else start a new run, with --train.weights from this one"
        )
    if wanted.train.epochs != before.train.epochs and wanted.train.steps is not None:
        raise ValueError(
            f"--train.epochs {wanted.train.epochs}: train.steps, {wanted.train.steps}, decides the length of this run; "
            "give more --train.steps, or also --train.steps null"
        )


def _differences(a: Any, b: Any, prefix: str = "") -> dict[str, tuple[Any, Any, bool]]:
    """Dotted name of each field that differs, to both values and whether it may change."""
    if type(a) is not type(b):
        return {f"{prefix}detector": (a.detector, b.detector, False)}
    found: dict[str, tuple[Any, Any, bool]] = {}
    for f in fields(a):
        x, y, name = getattr(a, f.name), getattr(b, f.name), f"{prefix}{f.name}"
        if is_dataclass(x) and is_dataclass(y):
            found |= _differences(x, y, f"{name}.")
        elif x != y:
            found[name] = (x, y, f.metadata.get(MAY_CHANGE, False))
    return found


def _changeable(cls: Any, prefix: str = "") -> list[str]:
    """Dotted names of the fields that may change."""
    names = []
    for f in fields(cls):
        hint = field_types(cls)[f.name]
        if is_dataclass(hint):
            names += _changeable(hint, f"{prefix}{f.name}.")
        elif f.metadata.get(MAY_CHANGE):
            names.append(prefix + f.name)
    return names


def restore(run: Run, saved: dict[str, Any], folder: Path) -> None:
    """Continue in ``folder`` with the state that its run ``saved``.

    Raises:
        ValueError: another training split, a checkpoint that does not fit the model, or a run that is longer already.
    """
    _check_train_split(run, saved, folder)
    run.folder, state, steps_per_epoch = folder, run.state, len(run.loader)
    try:
        state.load_state_dict({"step": _step_of_old_checkpoint(saved, steps_per_epoch)} | saved)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'last.pt'} does not fit its own configuration: {error}") from error
    if state.step > run.total_steps:
        raise ValueError(
            f"the run in {folder} has taken {state.step} steps ({state.epoch} epochs), more than the "
            f"{run.total_steps} requested; give --train.epochs {state.epoch} or more"
        )
    if state.step < run.total_steps:
        state.epoch = state.step // steps_per_epoch  # its last epoch may have ended early, and continues
    if is_main() and run.about["config"] != saved["config"]:
        run.save_start(folder)


def _check_train_split(run: Run, saved: dict[str, Any], folder: Path) -> None:
    now, before = run.about["train_split"], saved.get("train_split")  # older checkpoints have none
    if before is not None and now != before:
        raise ValueError(
            f"the training split in {run.config.data.root} is not the one that the run in {folder} started with: "
            f"{now['images']} images with {now['boxes']} boxes now, {before['images']} with {before['boxes']} then, or "
            "other sizes, boxes or labels; give the same data with --data.root, or start a new run with --train.weights"
        )


def _step_of_old_checkpoint(saved: dict[str, Any], steps_per_epoch: int) -> int:
    """The step of a checkpoint from before ``step`` was saved: it ended with an epoch or with the run."""
    config = from_plain(Config, without_old_options(saved["config"]))
    return min(saved["epoch"] * steps_per_epoch, config.train.total_steps(steps_per_epoch))
