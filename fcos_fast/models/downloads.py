"""Weights of torchvision and timm by name: downloaded once, cached, and checked by their hash."""

from __future__ import annotations

import hashlib
import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import torch
from torch import Tensor

from fcos_fast.models.config import BUILT_IN_BACKBONES, TIMM_PREFIX
from fcos_fast.models.optional import import_optional
from fcos_fast.models.timm_backbone import check_timm_name

TIMEOUT = 10.0
"""Seconds without an answer after which a server counts as unreachable."""

OFFLINE = "HF_HUB_OFFLINE"
"""Environment variable of huggingface_hub: nothing is downloaded. It holds for torchvision's weights too."""

Normalization = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of the channels of RGB images from 0 to 1."""


def default_weights(backbone: str) -> str | None:
    """The name of torchvision's or else timm's default weights of a backbone; None if neither has any."""
    if backbone.startswith(TIMM_PREFIX):
        return _default_of_timm(backbone.removeprefix(TIMM_PREFIX))
    if backbone not in BUILT_IN_BACKBONES:
        return None
    models = import_optional("torchvision.models", f"weights of {backbone} need")
    if backbone in models.list_models():
        return str(models.get_model_weights(backbone).DEFAULT)
    try:
        return _default_of_timm(backbone)
    except ModuleNotFoundError:
        return None


def _default_of_timm(model: str) -> str | None:
    timm = import_optional("timm", f"weights of {model} need")
    if not timm.is_model_pretrained(model):
        return None
    config = timm.get_pretrained_cfg(model)
    return f"{TIMM_PREFIX}{config.architecture}.{config.tag}".removesuffix(".")


def normalization(name: str) -> Normalization:
    """What the images were normalized by in the training of the weights.

    Raises:
        ValueError, ModuleNotFoundError: as :func:`download`.
    """
    if name.startswith(TIMM_PREFIX):
        config = _timm_config(name)
        return tuple(config.mean), tuple(config.std)
    transform = _torchvision_weights(name).transforms()
    return tuple(transform.mean), tuple(transform.std)


def download(name: str) -> dict[str, Tensor]:
    """The state dict of a classification model, from the cache of torch.hub or huggingface_hub if it is there.

    Args:
        name: ``ResNet50_Weights.IMAGENET1K_V1`` (torchvision) or ``timm:resnet50.a1_in1k``.

    Raises:
        ValueError: there are no weights of this name.
        ModuleNotFoundError: torchvision or timm is not installed.
        ConnectionError: the download failed; the message has the address.
    """
    return _from_timm(name) if name.startswith(TIMM_PREFIX) else _from_torchvision(name)


def _from_torchvision(name: str) -> dict[str, Tensor]:
    weights = _torchvision_weights(name)
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(weights.url).path).name
    try:
        if cached.is_file() and not _sha256(cached).startswith(cached.stem.rpartition("-")[2]):
            cached.unlink(missing_ok=True)  # damaged; another process may have removed it
        if not cached.is_file():
            check_connection(weights.url)
        with _socket_timeout():
            return dict(weights.get_state_dict(progress=sys.stderr.isatty(), check_hash=True))
    except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: torch.hub found another hash
        raise ConnectionError(
            f"{name} could not be downloaded ({error}); on a connected machine, download {weights.url}, then give the "
            "file"
        ) from error


def _torchvision_weights(name: str) -> Any:
    models = import_optional("torchvision.models", f"weights {name} need")
    try:
        return models.get_weight(name)
    except (ValueError, AttributeError, KeyError) as error:
        raise ValueError(
            f"torchvision has no weights {name} ({error}); expected a name such as ResNet50_Weights.IMAGENET1K_V1"
        ) from error


def _from_timm(name: str) -> dict[str, Tensor]:
    config = _timm_config(name)
    import timm

    try:
        file = _timm_file(config.hf_hub_id, config.hf_hub_filename or "model.safetensors")
        model = timm.create_model(
            name.removeprefix(TIMM_PREFIX), pretrained=True, pretrained_cfg_overlay={"file": str(file)}
        )
    except Exception as error:  # of any kind, from the hub's client
        raise ConnectionError(
            f"{name} could not be downloaded ({error}); on a connected machine, download model.safetensors from "
            f"https://huggingface.co/{config.hf_hub_id}, then give the file"
        ) from error
    return dict(model.state_dict())


def _timm_config(name: str) -> Any:
    check_timm_name(name)
    import timm

    model = name.removeprefix(TIMM_PREFIX)
    config = (
        timm.get_pretrained_cfg(model, allow_unregistered=True) if timm.is_model_pretrained(model) else None
    )
    if config is None or not config.hf_hub_id:
        raise ValueError(f"timm has no weights of {name}; timm.list_pretrained() lists all")
    return config


def _timm_file(repository: str, filename: str) -> Path:
    """The file in huggingface_hub's cache, downloaded if needed."""
    import huggingface_hub as hub

    cached = hub.try_to_load_from_cache(repository, filename)
    damaged = ""
    if isinstance(cached, str):
        if not _remove_damaged(cached):
            return Path(cached)
        damaged = f"{cached} was damaged and is removed; "
    try:
        check_connection(hub.constants.ENDPOINT)
        cached = hub.hf_hub_download(repository, filename)
    except Exception as error:  # of any kind, from the hub's client
        raise ConnectionError(f"{damaged}{error}") from error
    if _remove_damaged(cached):
        raise ConnectionError(f"{cached} was damaged and is removed; start again")
    return Path(cached)


def _remove_damaged(cached: str) -> bool:
    """Remove a file of huggingface_hub's cache if it is damaged, and return whether it was."""
    blob = Path(cached).resolve()  # large files are stored under their SHA-256
    if len(blob.name) != 64 or _sha256(blob) == blob.name:
        return False
    blob.unlink(missing_ok=True)
    return True


def check_connection(url: str) -> None:
    """Raise a ConnectionError unless the server of ``url`` answers within :data:`TIMEOUT`.

    In a thread: no timeout limits how long a name server is asked.
    """
    server = urlsplit(url).hostname
    if os.environ.get(OFFLINE, "").upper() in {"1", "ON", "YES", "TRUE"}:
        raise ConnectionError(f"{OFFLINE} is set")
    answers: list[Exception | None] = []

    def ask() -> None:
        try:
            urlopen(Request(url, method="HEAD"), timeout=TIMEOUT).close()
        except HTTPError:  # an answer, too
            answers.append(None)
        except Exception as error:  # of any kind
            answers.append(error)
        else:
            answers.append(None)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(TIMEOUT)
    error = answers[0] if answers else TimeoutError("no answer")
    if error is not None:
        raise ConnectionError(f"{server}: {error}")


@contextmanager
def _socket_timeout() -> Iterator[None]:
    """torch.hub sets no timeout of its own."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()
