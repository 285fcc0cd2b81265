"""A detector with random weights, the files of it, and images to try."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fcos_fast.data import Categories
from fcos_fast.engine.checkpoint import describe_model, save_checkpoint
from fcos_fast.inference import Predictor, load
from fcos_fast.models import FCOS, FCOSConfig
from tests.inference.engines import ColorEngine

CATEGORIES = Categories(("circle", "square"), ids=(7, 3))


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """The images are too small for more."""


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A checkpoint whose random weights detect everything everywhere."""
    torch.manual_seed(0)
    config = FCOSConfig(
        backbone="resnet18",
        num_classes=len(CATEGORIES),
        fpn_channels=32,
        head_channels=64,
        head_convs=1,
        min_size=None,
        prior=0.5,
    )
    model = FCOS(config)
    path = tmp_path_factory.mktemp("run") / "best.pt"
    save_checkpoint(path, {**describe_model(model, CATEGORIES), "model": model.state_dict()})
    return path


@pytest.fixture(scope="session")
def detector(checkpoint) -> Predictor:
    return load(checkpoint, device="cpu", precision="float32")


@pytest.fixture
def colors() -> Predictor:
    """A predictor that finds red and green rectangles."""
    return Predictor(ColorEngine())


@pytest.fixture
def file(tmp_path) -> Path:
    """A 96x64 JPEG file."""
    file = tmp_path / "photograph.jpg"
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((96, 64)).save(file)
    return file
