"""Checkpoints: one file that says everything about a run, written whole or not at all.

``last.pt`` holds what resuming needs: model, moving average, optimizer, position, random states, configuration.
``best.pt`` holds what detecting needs: the weights that were evaluated. Both load with ``weights_only=True``, so that
opening a stranger's file runs no code of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fcos_fast.data import Categories
from fcos_fast.engine.files import replacing
from fcos_fast.models import Detector, build_detector, config_from_dict

FORMAT = "fcos_fast checkpoint 1"


def save_checkpoint(path: str | Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors and plain Python values) to ``path``, atomically."""
    with replacing(path) as temporary:
        torch.save({"format": FORMAT, **state}, temporary)


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a file of :func:`save_checkpoint` onto the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is cut off, or no checkpoint of this project.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; name the file in it, as {path / 'best.pt'}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no pickle can fail it in any way
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is no checkpoint, or only a part of one; "
            "give a best.pt or last.pt that `fcos-fast train` wrote"
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(
            f"{path} is a torch file but no checkpoint of fcos_fast; "
            "give a best.pt or last.pt that `fcos-fast train` wrote"
        )
    return state


def describe_model(model: Detector, categories: Categories) -> dict[str, Any]:
    """What a checkpoint says about a model apart from its weights."""
    return {"model_config": model.config.to_dict(), "categories": categories.to_dict()}


def model_from_checkpoint(state: dict[str, Any]) -> tuple[Detector, Categories]:
    """The model of a checkpoint, in evaluation mode, with its averaged weights where it has them."""
    model = build_detector(config_from_dict(state["model_config"]))
    model.load_state_dict(_weights(state))
    return model.eval(), Categories.from_dict(state["categories"])


def load_weights(model: Detector, path: str | Path, categories: Categories, new_classes: bool = False) -> None:
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
        own = model.state_dict()
        weights = {k: own[k] if k.startswith(CLASS_LAYER) and k in own else v for k, v in weights.items()}
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


CLASS_LAYER = "head.classification_head.cls_logits."


def _weights(state: dict[str, Any]) -> dict[str, Tensor]:
    return state["ema"]["model"] if state.get("ema") else state["model"]


def _some(items: Sequence[str], most: int = 5) -> str:
    return ", ".join(items[:most]) + (", ..." if len(items) > most else "")
