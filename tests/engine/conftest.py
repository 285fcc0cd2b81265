"""A tiny dataset of generated images, and a configuration that trains on it in a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fcos_fast.data import SyntheticConfig, write_voc
from fcos_fast.engine.config import Config, DataConfig, TrainConfig
from fcos_fast.engine.train import TrainResult, train
from fcos_fast.models import FCOSConfig

TINY_MODEL = FCOSConfig(
    backbone="resnet18", fpn_channels=32, head_channels=64, head_convs=1, min_size=None, max_size=None
)


@pytest.fixture(autouse=True)
def _one_thread(one_thread):
    """Tests compare results of subprocesses with this process bit by bit, and share the machine."""


@pytest.fixture(scope="session")
def voc_root(tmp_path_factory) -> Path:
    """A VOC folder: 8 images in split train, 4 in split val."""
    root = tmp_path_factory.mktemp("data") / "voc"
    config = SyntheticConfig(size=(64, 96), object_size=(16, 48), max_objects=3)
    write_voc(root, {"train": 8, "val": 4}, config=config)
    return root


@pytest.fixture(scope="session")
def tiny_config(voc_root) -> Callable[[Path], Config]:
    """Two epochs of four steps, in the given folder."""

    def make(runs: Path) -> Config:
        return Config(
            data=DataConfig(root=str(voc_root)),
            model=TINY_MODEL,
            train=TrainConfig(epochs=2, batch_size=2, device="cpu", runs=str(runs)),
        )

    return make


@pytest.fixture(scope="session")
def whole_run(tiny_config, tmp_path_factory) -> tuple[Config, TrainResult]:
    """An uninterrupted run: its configuration and result."""
    torch.set_num_threads(1)
    config = tiny_config(tmp_path_factory.mktemp("whole"))
    return config, train(config)


@pytest.fixture
def tiny(tiny_config, tmp_path) -> Config:
    """``tiny_config`` in a folder of this test."""
    return tiny_config(tmp_path / "runs")
