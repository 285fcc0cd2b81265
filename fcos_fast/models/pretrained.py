"""Pretrained weights of a backbone: a file, or torchvision's by name."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor

from fcos_fast.models.backbone import Backbone
from fcos_fast.models.layouts import without_wrapping
from fcos_fast.models.timm_backbone import TimmBackbone

CLASSIFIERS = ("fc.", "classifier.", "head.", "features.18.")
"""Begin of the names of what classification models have above their backbone."""


def load_pretrained(backbone: Backbone, source: str | Path) -> None:
    """Give a backbone the weights of a classification model; its classifier is left out.

    Args:
        backbone: takes them in place.
        source: a file that ``torch.load`` reads with ``weights_only=True``, a state dict or a checkpoint that holds
            one; or torchvision's name of weights, as ``ResNet50_Weights.IMAGENET1K_V1``, which are downloaded and kept
            in torch's cache.

    Raises:
        FileNotFoundError: there is no such file, and it is no name of weights.
        ValueError: the weights are of another network; the message lists what is left over, missing or misshapen.
        ModuleNotFoundError: a name is given, and torchvision is not installed.
        ConnectionError: the download failed; the message says how to do without it.
    """
    state = _from_file(Path(source)) if Path(source).is_file() else _from_torchvision(str(source))
    own = backbone.features if isinstance(backbone, TimmBackbone) else backbone
    known = own.state_dict()
    state = {key: value for key, value in state.items() if key in known or not key.startswith(CLASSIFIERS)}
    problems = {
        "missing": [key for key in known if key not in state and not key.endswith("num_batches_tracked")],
        "left over": [key for key in state if key not in known and not key.endswith("num_batches_tracked")],
        "of another shape": [
            f"{key} {tuple(state[key].shape)} instead of {tuple(value.shape)}"
            for key, value in known.items()
            if key in state and state[key].shape != value.shape
        ],
    }
    if any(problems.values()):
        told = "; ".join(f"{what}: {_some(names)}" for what, names in problems.items() if names)
        raise ValueError(f"{source} holds the weights of another network than this backbone; {told}")
    # Frozen norms do not count batches, others begin to.
    own.load_state_dict({key: state.get(key, value) for key, value in known.items()})


def _from_file(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # bytes that are no pickle can fail it in any way
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is no file of weights that torch reads safely"
        ) from error
    state = without_wrapping(loaded) if isinstance(loaded, dict) else {}
    if not state:
        raise ValueError(f"{path} holds no tensors; expected the state dict of a classification model")
    return state


def _from_torchvision(name: str) -> dict[str, Tensor]:
    if "_Weights." not in name:
        raise FileNotFoundError(
            f"there is no file {name}; give a file of weights, or a name as ResNet50_Weights.IMAGENET1K_V1"
        )
    try:
        from torchvision.models import get_weight
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"weights {name} need torchvision; pip install torchvision", name="torchvision"
        ) from error
    try:
        weights = get_weight(name)
    except (ValueError, AttributeError, KeyError) as error:
        raise ValueError(f"torchvision has no weights {name}: {error}") from error
    try:
        return dict(weights.get_state_dict(progress=False, check_hash=True))
    except (URLError, OSError) as error:
        raise ConnectionError(
            f"{name} could not be downloaded ({error}); fetch {weights.url} elsewhere and give the file"
        ) from error


def _some(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
