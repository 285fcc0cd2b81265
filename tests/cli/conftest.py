"""A data set of twelve images and a checkpoint that was never trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fcos_fast.data import SyntheticConfig, load_dataset, write_voc
from fcos_fast.engine.checkpoint import describe_model, save_checkpoint
from fcos_fast.engine.config import Config, DataConfig
from fcos_fast.models import FCOS, FCOSConfig
from fcos_fast.serialize import to_plain


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """A VOC folder of images of 96x64 pixels: 10 in split train, 2 in split val."""
    root = tmp_path_factory.mktemp("data") / "images"
    config = SyntheticConfig(size=(64, 96), object_size=(16, 48), max_objects=3)
    write_voc(root, {"train": 10, "val": 2}, config=config)
    return root


@pytest.fixture(scope="session")
def checkpoint(images, tmp_path_factory) -> Path:
    """A checkpoint for ``images`` whose random weights detect everything everywhere."""
    torch.manual_seed(0)
    categories = load_dataset(images).categories
    config = FCOSConfig(
        backbone="resnet18",
        num_classes=len(categories),
        fpn_channels=32,
        head_channels=64,
        head_convs=1,
        min_size=None,
        prior=0.5,
    )
    model = FCOS(config)
    about = {"config": to_plain(Config(data=DataConfig(root=str(images)), model=config))}
    path = tmp_path_factory.mktemp("run") / "best.pt"
    save_checkpoint(path, {**about, **describe_model(model, categories), "model": model.state_dict()})
    return path
