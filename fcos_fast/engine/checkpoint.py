"""Checkpoints: one file that says everything about a run, written whole or not at all.

``last.pt`` holds what resuming needs: model, moving average, optimizer, position, random states, configuration.
``best.pt`` holds what detecting needs: the weights that were evaluated. Both load with ``weights_only=True``, so that
opening a stranger's file runs no code of theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fcos_fast.data import Categories
from fcos_fast.engine.files import replacing
from fcos_fast.engine.foreign import read_foreign
from fcos_fast.models import Detector, build_detector, config_from_dict
from fcos_fast.models.layouts import CLASSES

FORMAT = "fcos_fast checkpoint 1"
OWN = "checkpoint of fcos_fast"


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors and plain Python values) to ``path``, atomically."""
    with replacing(path) as temporary:
        torch.save({"format": FORMAT, **state}, temporary)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU: one of :func:`save_checkpoint`, or of another implementation of FCOS.

    The latter is read as :func:`fcos_fast.engine.foreign.read_foreign` does without further advice, and a line says as
    what.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut off, or no checkpoint that is known.
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
    if state.get("format") == FORMAT:
        return state, OWN
    try:
        foreign = read_foreign(state, preset, overrides)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
    return foreign.state, str(foreign)


def describe_model(model: Detector, categories: Categories) -> dict[str, Any]:
    """What a checkpoint says about a model apart from its weights."""
    return {"model_config": model.config.to_dict(), "categories": categories.to_dict()}


def model_from_checkpoint(state: dict[str, Any]) -> tuple[Detector, Categories]:
    """The model of a checkpoint, in evaluation mode, with its averaged weights where it has them."""
    model = build_detector(config_from_dict(state["model_config"]))
    model.load_state_dict(_weights(state))
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
        ours, other = model.config.to_dict(), config_from_dict(state["model_config"]).to_dict()
        differences = [f"{k} {other.get(k)} there, {v} here" for k, v in ours.items() if v != other.get(k)]
        raise ValueError(f"{path} is of another architecture: {_some(differences)}") from error


def _weights(state: dict[str, Any]) -> dict[str, Tensor]:
    return state["ema"]["model"] if state.get("ema") else state["model"]


def _some(items: Sequence[str], most: int = 5) -> str:
    return ", ".join(items[:most]) + (", ..." if len(items) > most else "")
