"""Checkpoints: files that are written atomically and checked when they are read.

``last.pt`` contains what resuming needs: model, moving average, optimizer, position, random states, configuration.
``best.pt`` contains what detection needs: the weights that were evaluated. Both load with ``weights_only=True``, so a
file from a stranger cannot run code, and both have a digest of their content, so a damaged file is rejected.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fcos_fast.data import Categories
from fcos_fast.engine.distributed import is_main
from fcos_fast.engine.files import replacing
from fcos_fast.engine.foreign import read_foreign
from fcos_fast.models import Detector, DetectorConfig, build_detector
from fcos_fast.models.checkpoint_formats import CLASSES, recognize, without_wrapping

FORMAT = "fcos_fast checkpoint 1"
OWN = "checkpoint of fcos_fast"


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors and plain Python values) to ``path``, atomically.

    Raises:
        WriteError: it cannot be written; an old file is unchanged.
    """
    state = {"format": FORMAT, **{name: value for name, value in state.items() if name != "digest"}}
    save_file(path, {**state, "digest": digest(state)})


def save_file(path: str | Path, content: dict[str, Any]) -> None:
    """``torch.save``, atomically.

    Raises:
        WriteError: it cannot be written; an old file is unchanged.
    """
    with replacing(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's closing of its archive fails too and hides the reason
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def digest(state: Mapping[str, Any]) -> str:
    """A hash of everything in ``state``: names, plain values, and dtype, shape and elements of each tensor.

    It detects damage, not forgery: the elements of a tensor enter by their CRC-32, which reads 2 GB per second.
    """
    hasher = hashlib.blake2b(digest_size=16)
    for part in _parts(state):
        hasher.update(part.encode("utf-8", "surrogatepass") + b"\0")
    return hasher.hexdigest()


def _parts(value: Any) -> Iterator[str]:
    """A string for each value in ``value``, and for the start and end of each container."""
    if isinstance(value, Tensor):
        elements = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        yield f"{value.dtype} {tuple(value.shape)} {zlib.crc32(elements.data)}"
    elif isinstance(value, Mapping):
        yield "{"
        for key, item in value.items():
            yield repr(key)
            yield from _parts(item)
        yield "}"
    elif isinstance(value, (list, tuple)):
        yield "("
        for item in value:
            yield from _parts(item)
        yield ")"
    else:
        yield repr(value)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint of :func:`save_checkpoint`, or of another implementation of FCOS, onto the CPU.

    The latter goes through :func:`fcos_fast.engine.foreign.read_foreign` with its defaults, and a line tells how it was
    interpreted.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is truncated, damaged, or not a known checkpoint format.
    """
    state, origin = read_checkpoint(path)
    if origin != OWN:
        print(f"{path}: {origin}", flush=True)
    return state


def read_checkpoint(
    path: str | Path, preset: str | None = None, overrides: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], str]:
    """:func:`load_checkpoint` with the ``preset`` and ``overrides`` of ``read_foreign``.

    Returns:
        The state, and the origin of the file in words: :data:`OWN`, or the implementation that wrote it.
    """
    path = Path(path)
    state = _read(path)
    if "format" in state or {"model_config", "categories"} <= state.keys():
        return _check(path, state), OWN
    try:
        foreign = read_foreign(state, preset, overrides)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
    return foreign.state, str(foreign)


def _read(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give a file in it, for example {path / 'best.pt'}")
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # invalid pickles raise errors of any type
        if "GLOBAL" in str(error):  # torch's word for the class of an object
            raise ValueError(
                f"{path} contains pickled objects other than tensors, which could run code, and is not loaded for "
                "safety; if you trust it, save its tensors alone: "
                "torch.save({'state_dict': torch.load(file, weights_only=False)['state_dict']}, new_file)"
            ) from error
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is not a checkpoint, or a truncated one; "
            "give best.pt or last.pt of a run, or a checkpoint that `fcos-fast convert` reads"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(
            f"{path} is a torch file without parameters; give best.pt or last.pt of a run, or a checkpoint "
            "that `fcos-fast convert` reads"
        )
    return state


def _check(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """The ``state`` without its digest; a ValueError unless it is complete and undamaged."""
    if state.get("format") != FORMAT:
        raise ValueError(
            f"{path} has the format {state.get('format')!r}; expected {FORMAT!r}. It is damaged, or written "
            "by a newer version of fcos_fast"
        )
    stored = state.pop("digest", None)
    if stored is None:
        if is_main():
            print(
                f"{path}: written by an older version, without a digest, so damage cannot be detected",
                flush=True,
            )
    elif stored != digest(state):
        raise ValueError(
            f"{path} is damaged, or was changed outside fcos_fast: its content does not match its digest; restore "
            "the file from a copy, or save changes with fcos_fast.engine.checkpoint.save_checkpoint"
        )
    try:
        DetectorConfig.from_dict(state["model_config"])
        Categories.from_dict(state["categories"])
        _weights(state).keys()
    except KeyError as error:
        raise ValueError(f"{path} is an incomplete checkpoint: it has no {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from error
    return state


def describe_model(model: Detector, categories: Categories) -> dict[str, Any]:
    """The entries of a checkpoint that describe its model."""
    return {"model_config": model.config.to_dict(), "categories": categories.to_dict()}


def model_from_checkpoint(state: dict[str, Any]) -> tuple[Detector, Categories]:
    """The model of a checkpoint, in evaluation mode, with averaged weights if there are any."""
    model = build_detector(DetectorConfig.from_dict(state["model_config"]))
    try:
        model.load_state_dict(_weights(state))
    except RuntimeError as error:
        raise ValueError(f"the weights of the checkpoint do not fit its model_config: {error}") from error
    return model.eval(), Categories.from_dict(state["categories"])


def is_detector(path: str | Path) -> bool:
    """Whether a file is the checkpoint of a detector, of this project or another, rather than a backbone's weights.

    Raises:
        ValueError: it is damaged, or no file of torch.
    """
    if Path(path).suffix == ".safetensors":
        return False
    state = _read(Path(path))
    return "format" in state or "model_config" in state or recognize(without_wrapping(state)) is not None


def load_weights(model: Detector, path: str | Path, categories: Categories) -> str:
    """Load the weights of a checkpoint into ``model``, to train from them.

    Classes are matched by name: a class that both have keeps its weights in the classification layer, a new one the
    weights that ``model`` has.

    Args:
        model: model of the same architecture, for any classes.
        path: path of the checkpoint.
        categories: classes of ``model``.

    Returns:
        What was loaded, in one line.

    Raises:
        ValueError: the checkpoint has another architecture.
    """
    state = load_checkpoint(path)
    weights, own = _weights(state), model.state_dict()
    theirs, ours = Categories.from_dict(state["categories"]).names, categories.names
    classes = f"its {len(ours)} classes"
    if theirs != ours:
        weights = {
            name: _matched_classes(value, own[name], theirs, ours)
            if name.startswith(CLASSES) and name in own
            else value
            for name, value in weights.items()
        }
        kept, new = ([n for n in ours if (n in theirs) is known] for known in (True, False))
        classes = f"classes with their weights: {_some(kept) or 'none'}; new: {_some(new) or 'none'}"
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        config, other = model.config.to_dict(), DetectorConfig.from_dict(state["model_config"]).to_dict()
        skipped = "num_classes" if theirs != ours else ""
        differences = [
            f"{k} {other.get(k)} there, {v} here"
            for k, v in config.items()
            if v != other.get(k) and k != skipped
        ]
        raise ValueError(f"{path} has another architecture: {_some(differences)}") from error
    return f"{path}; {classes}"


def _matched_classes(given: Tensor, own: Tensor, theirs: Sequence[str], ours: Sequence[str]) -> Tensor:
    """``own`` with the rows of ``given`` for classes of the same name.

    Rows are ordered by anchor, if there are several, then by class.
    """
    rows = [(ours.index(name), theirs.index(name)) for name in ours if name in theirs]
    anchors = len(own) // len(ours)
    if given.shape[1:] != own.shape[1:] or len(given) != anchors * len(theirs):
        return given  # of another architecture
    result = own.clone().unflatten(0, (anchors, len(ours)))
    for to, row in rows:
        result[:, to] = given.unflatten(0, (anchors, len(theirs)))[:, row]
    return result.flatten(0, 1)


def _weights(state: dict[str, Any]) -> dict[str, Tensor]:
    return state["ema"]["model"] if state.get("ema") else state["model"]


def _some(items: Sequence[str], most: int = 5) -> str:
    return ", ".join(items[:most]) + (", ..." if len(items) > most else "")
