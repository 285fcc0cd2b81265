"""Pretrained weights of a backbone, from a file or by the names of torchvision and timm."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from fcos_fast.models.backbone import Backbone
from fcos_fast.models.checkpoint_formats import without_wrapping
from fcos_fast.models.config import TIMM_PREFIX
from fcos_fast.models.darknet import DarkNet19, read_in_order
from fcos_fast.models.downloads import download
from fcos_fast.models.optional import import_optional
from fcos_fast.models.timm_backbone import TimmBackbone

CLASSIFIERS = ("fc.", "classifier.", "head.", "features.18.")
"""Prefixes of the layers that classification models have above the backbone."""


def load_pretrained(backbone: Backbone, source: str | Path) -> None:
    """Load the weights of a classification model into a backbone; its classifier is ignored.

    Args:
        backbone: changed in place.
        source: a file or the name of weights to download (and cache). Files: ``.safetensors``, or what ``torch.load``
            reads with ``weights_only=True``; a state dict or a checkpoint that contains one. Names: torchvision's, such
            as ``ResNet50_Weights.IMAGENET1K_V1``; timm's, such as ``timm:resnet50.a1_in1k``; ``timm`` for the default
            weights of a timm backbone. Tensors of a DarkNet19 or a timm backbone with other names are read by their
            order.

    Raises:
        FileNotFoundError: neither a file nor a name of weights.
        ValueError: weights of another network; the message lists parameters left over, missing or of another shape.
        ModuleNotFoundError: the name needs torchvision or timm, which is not installed.
        ConnectionError: the download failed; the message has the address.
    """
    state = _from_file(Path(source)) if Path(source).is_file() else _by_name(str(source), backbone)
    own: nn.Module = backbone
    if isinstance(backbone, TimmBackbone):
        own, state = backbone.features, backbone.from_classifier(state)
    known = own.state_dict()
    if isinstance(own, DarkNet19) and not known.keys() & state.keys():  # DarkNet has no established names
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
        listed = "; ".join(f"{what}: {_some(names)}" for what, names in problems.items() if names)
        raise ValueError(f"{source} contains the weights of another network than this backbone; {listed}")
    # num_batches_tracked is missing in files of frozen norms; it keeps its own value then
    own.load_state_dict({key: state.get(key, value) for key, value in known.items()})


def _from_file(path: Path) -> dict[str, Tensor]:
    try:
        loaded = _safetensors(path) if path.suffix == ".safetensors" else _torch_file(path)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # arbitrary bytes fail in any way
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes) cannot be read safely as weights ({error}); expected a state dict "
            "written by torch.save, or a .safetensors file"
        ) from error
    state = without_wrapping(loaded) if isinstance(loaded, dict) else {}
    if not state:
        raise ValueError(f"{path} contains no tensors; expected the state dict of a classification model")
    return state


def _torch_file(path: Path) -> object:
    return torch.load(path, map_location="cpu", weights_only=True)


def _safetensors(path: Path) -> dict[str, Tensor]:
    return import_optional("safetensors.torch", f"{path} needs").load_file(path)


def _by_name(name: str, backbone: Backbone) -> dict[str, Tensor]:
    if name == TIMM_PREFIX.removesuffix(":") and isinstance(backbone, TimmBackbone):
        return download(backbone.name)
    if is_name(name):
        return download(name)
    raise FileNotFoundError(
        f"no such file: {name}; expected a file of weights, or a name such as ResNet50_Weights.IMAGENET1K_V1 "
        "(torchvision) or timm:resnet50.a1_in1k, or timm for the default weights of a timm backbone"
    )


def is_name(source: str) -> bool:
    """Whether this is a name of torchvision's or timm's weights."""
    return source.startswith(TIMM_PREFIX) or "_Weights." in source


def _some(names: list[str], most: int = 6) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
