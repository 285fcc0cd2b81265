"""A dataset of twelve images and an untrained checkpoint."""

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
def _one_thread(one_thread):
    """The images are too small for more."""


@pytest.fixture(scope="session")
def voc_root(tmp_path_factory) -> Path:
    """A VOC folder of 96x64 images: 10 in split train, 2 in split val."""
    root = tmp_path_factory.mktemp("data") / "voc"
    config = SyntheticConfig(size=(64, 96), object_size=(16, 48), max_objects=3)
    write_voc(root, {"train": 10, "val": 2}, config=config)
    return root


@pytest.fixture(scope="session")
def checkpoint(voc_root, tmp_path_factory) -> Path:
    """A checkpoint for ``voc_root`` whose random weights detect everything everywhere."""
    torch.manual_seed(0)
    categories = load_dataset(voc_root).categories
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
    about = {"config": to_plain(Config(data=DataConfig(root=str(voc_root)), model=config))}
    path = tmp_path_factory.mktemp("run") / "best.pt"
    save_checkpoint(path, {**about, **describe_model(model, categories), "model": model.state_dict()})
    return path
