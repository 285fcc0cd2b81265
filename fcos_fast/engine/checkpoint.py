"""Checkpoints: one file that says everything about a run, written whole or not at all.

``last.pt`` holds what resuming needs: model, moving average, optimizer, position, random states, configuration.
``best.pt`` holds what detecting needs: the weights that were evaluated. Both load with ``weights_only=True``, so that
opening a stranger's file runs no code of theirs; and both hold a digest of their content, so that a damaged file is
rejected instead of giving other weights.
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
from fcos_fast.engine.distributed import rank
from fcos_fast.engine.files import replacing
from fcos_fast.engine.foreign import read_foreign
from fcos_fast.models import Detector, DetectorConfig, build_detector
from fcos_fast.models.checkpoint_formats import CLASSES

FORMAT = "fcos_fast checkpoint 1"
OWN = "checkpoint of fcos_fast"


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors and plain Python values) to ``path``, atomically.

    Raises:
        WriteError: it cannot be written; what was at ``path`` is unchanged.
    """
    state = {"format": FORMAT, **{name: value for name, value in state.items() if name != "digest"}}
    save_file(path, {**state, "digest": digest(state)})


def save_file(path: str | Path, content: dict[str, Any]) -> None:
    """As ``torch.save``, atomically.

    Raises:
        WriteError: it cannot be written; what was at ``path`` is unchanged.
    """
    with replacing(path) as temporary, open(temporary, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch closes its archive, which fails too and hides the reason
            raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None


def digest(state: Mapping[str, Any]) -> str:
    """A hash of everything in ``state``: names, plain values, and type, shape and elements of each tensor.

    It detects damage, not forgery: the elements of a tensor count by their CRC-32, which reads 2 GB per second.
    """
    hasher = hashlib.blake2b(digest_size=16)
    for part in _parts(state):
        hasher.update(part.encode("utf-8", "surrogatepass") + b"\0")
    return hasher.hexdigest()


def _parts(value: Any) -> Iterator[str]:
    """A text for each value inside of ``value``, and where the containers begin and end."""
    if isinstance(value, Tensor):
        elements = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        yield f"{value.dtype} {tuple(value.shape)} {zlib.crc32(elements)}"
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
    """Read a checkpoint onto the CPU: one of :func:`save_checkpoint`, or of another implementation of FCOS.

    The latter is read as :func:`fcos_fast.engine.foreign.read_foreign` does without further advice, and a line says as
    what.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut off, damaged, or no checkpoint that is known.
    """
    state, origin = read_checkpoint(path)
    if origin != OWN:
        print(f"{path}: {origin}", flush=True)
    return state


def read_checkpoint(
    path: str | Path, preset: str | None = None, overrides: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], str]:
    """As :func:`load_checkpoint`, with the ``preset`` and ``overrides`` of ``read_foreign``.

    Returns:
        The state, and what the file was in words: :data:`OWN`, or the implementation that wrote it.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name the file in it, as {path / 'best.pt'}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no pickle can fail it in any way
        if "GLOBAL" in str(error):  # so torch names the class of an object
            raise ValueError(
                f"{path} is no checkpoint that can be read safely: it holds other objects than tensors, which could "
                "run code; where you trust it, write its tensors alone: "
                "torch.save({'state_dict': torch.load(file, weights_only=False)['state_dict']}, new_file)"
            ) from error
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is no checkpoint, or only a part of one; "
            "give a best.pt or last.pt that `fcos-fast train` wrote"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(
            f"{path} is a torch file but holds no parameters; give a best.pt or last.pt that `fcos-fast train` wrote"
        )
    if "format" in state or {"model_config", "categories"} <= state.keys():
        return _check(path, state), OWN
    try:
        foreign = read_foreign(state, preset, overrides)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
    return foreign.state, str(foreign)


def _check(path: Path, state: dict[str, Any]) -> dict[str, Any]:
    """The content of a file of :func:`save_checkpoint`, which is all there and undamaged."""
    if state.get("format") != FORMAT:
        raise ValueError(
            f"{path} has the format {state.get('format')!r}; expected {FORMAT!r}. It is damaged, or of a newer "
            "version of fcos_fast"
        )
    stored = state.pop("digest", None)
    if stored is None:
        if rank() == 0:
            print(f"{path}: written by an older version, without a digest that would show damage", flush=True)
    elif stored != digest(state):
        raise ValueError(
            f"{path} is damaged, or was changed outside of fcos_fast: its content does not match its digest; restore "
            "the file from a copy, or save changes with fcos_fast.engine.checkpoint.save_checkpoint"
        )
    try:
        DetectorConfig.from_dict(state["model_config"])
        Categories.from_dict(state["categories"])
        _weights(state).keys()
    except KeyError as error:
        raise ValueError(f"{path} is no complete checkpoint: it has no {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from error
    return state


def describe_model(model: Detector, categories: Categories) -> dict[str, Any]:
    """What a checkpoint says about a model apart from its weights."""
    return {"model_config": model.config.to_dict(), "categories": categories.to_dict()}


def model_from_checkpoint(state: dict[str, Any]) -> tuple[Detector, Categories]:
    """The model of a checkpoint, in evaluation mode, with its averaged weights where it has them."""
    model = build_detector(DetectorConfig.from_dict(state["model_config"]))
    try:
        model.load_state_dict(_weights(state))
    except RuntimeError as error:
        raise ValueError(f"the weights of the checkpoint do not fit its model_config: {error}") from error
    return model.eval(), Categories.from_dict(state["categories"])


def load_weights(
    model: Detector, path: str | Path, categories: Categories, new_classes: bool = False
) -> None:
    """Begin with the weights of a checkpoint.

    Args:
        model: takes the weights.
        path: of the checkpoint.
        categories: that the model is for.
        new_classes: leave the classification layer, the only one that knows the classes, as it is.

    Raises:
        ValueError: the checkpoint is for other classes, or of another architecture.
    """
    state = load_checkpoint(path)
    weights = _weights(state)
    theirs = Categories.from_dict(state["categories"])
    if new_classes:
        print(
            f"{path}: its layer for {len(theirs)} classes is left out, that for {len(categories)} begins anew"
        )
        own = model.state_dict()
        weights = {k: own[k] if k.startswith(CLASSES) and k in own else v for k, v in weights.items()}
    elif theirs.names != categories.names:
        raise ValueError(
            f"{path} knows {len(theirs)} classes ({_some(theirs.names)}), the data set has {len(categories)} "
            f"({_some(categories.names)}); to learn them anew give --train.new_classes true"
        )
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        ours, other = model.config.to_dict(), DetectorConfig.from_dict(state["model_config"]).to_dict()
        differences = [f"{k} {other.get(k)} there, {v} here" for k, v in ours.items() if v != other.get(k)]
        raise ValueError(f"{path} is of another architecture: {_some(differences)}") from error


def _weights(state: dict[str, Any]) -> dict[str, Tensor]:
    return state["ema"]["model"] if state.get("ema") else state["model"]


def _some(items: Sequence[str], most: int = 5) -> str:
    return ", ".join(items[:most]) + (", ..." if len(items) > most else "")
