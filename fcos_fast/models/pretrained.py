"""Pretrained weights of a backbone: a file, or torchvision's and timm's by name."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor

from fcos_fast.models.backbone import Backbone
from fcos_fast.models.checkpoint_formats import without_wrapping
from fcos_fast.models.config import TIMM_PREFIX
from fcos_fast.models.darknet import DarkNet19, read_in_order
from fcos_fast.models.timm_backbone import TimmBackbone, check_timm_name

CLASSIFIERS = ("fc.", "classifier.", "head.", "features.18.")
"""Begin of the names of what classification models have above their backbone."""


def load_pretrained(backbone: Backbone, source: str | Path) -> None:
    """Give a backbone the weights of a classification model; its classifier is left out.

    Args:
        backbone: takes them in place.
        source: a file that ``torch.load`` reads with ``weights_only=True``, or a ``.safetensors`` file, with a state
            dict or a checkpoint that holds one; or the name of weights, which are downloaded and kept in a cache:
            torchvision's, as ``ResNet50_Weights.IMAGENET1K_V1``, timm's, as ``timm:resnet50.a1_in1k``, or ``timm`` for
            those that timm has for a backbone of its own. Tensors of a DarkNet19 under other names are read in order.

    Raises:
        FileNotFoundError: there is no such file, and it is no name of weights.
        ValueError: the weights are of another network; the message lists what is left over, missing or misshapen.
        ModuleNotFoundError: a name is given, and torchvision or timm is not installed.
        ConnectionError: the download failed; the message says how to do without it.
    """
    state = _from_file(Path(source)) if Path(source).is_file() else _by_name(str(source), backbone)
    own = backbone
    if isinstance(backbone, TimmBackbone):
        own, state = backbone.features, backbone.from_classifier(state)
    known = own.state_dict()
    if (
        isinstance(own, DarkNet19) and not known.keys() & state.keys()
    ):  # DarkNet has no names of its own in the field
        state = read_in_order(state)
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
        loaded = _safetensors(path) if path.suffix == ".safetensors" else _torch_file(path)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # bytes that are no pickle can fail it in any way
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) is no file of weights that can be read safely ({error}); expected "
            "what torch.save writes of a state dict, or a .safetensors file"
        ) from error
    state = without_wrapping(loaded) if isinstance(loaded, dict) else {}
    if not state:
        raise ValueError(f"{path} holds no tensors; expected the state dict of a classification model")
    return state


def _torch_file(path: Path) -> object:
    return torch.load(path, map_location="cpu", weights_only=True)


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path} needs safetensors; pip install safetensors", name="safetensors"
        ) from error
    return load_file(path)


def _by_name(name: str, backbone: Backbone) -> dict[str, Tensor]:
    if name == TIMM_PREFIX.removesuffix(":") and isinstance(backbone, TimmBackbone):
        return _from_timm(backbone.name)
    if name.startswith(TIMM_PREFIX):
        return _from_timm(name)
    if "_Weights." in name:
        return _from_torchvision(name)
    raise FileNotFoundError(
        f"there is no file {name}; give a file of weights, or a name as ResNet50_Weights.IMAGENET1K_V1 (torchvision), "
        "timm:resnet50.a1_in1k, or, for a backbone of timm, timm"
    )


def _from_timm(name: str) -> dict[str, Tensor]:
    check_timm_name(name)
    import timm

    model = name.removeprefix(TIMM_PREFIX)
    if not timm.is_model_pretrained(model):
        raise ValueError(f"timm has no weights of {name}; timm.list_pretrained() lists those that it has")
    try:
        return timm.create_model(model, pretrained=True).state_dict()
    except Exception as error:  # of the hub's client, of many kinds
        raise ConnectionError(
            f"{name} could not be downloaded ({error}); fetch its model.safetensors from https://huggingface.co/timm "
            "elsewhere and give the file"
        ) from error


def _from_torchvision(name: str) -> dict[str, Tensor]:
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
