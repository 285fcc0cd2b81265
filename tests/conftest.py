"""Fixtures and rules for every test."""

from __future__ import annotations

import os
from pathlib import Path

# Several processes of pytest-xdist share the cores. Before torch is imported, and for the processes that tests start.
if (workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import pytest
import torch

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def pytest_collection_modifyitems(config, items):
    skipped = {}
    if not torch.cuda.is_available():
        skipped["gpu"] = pytest.mark.skip(reason="no CUDA device")
    if "large" not in config.option.markexpr:
        skipped["large"] = pytest.mark.skip(reason="needs much memory; asked for by -m large")
    for item in items:
        for name, mark in skipped.items():
            if item.get_closest_marker(name):  # not a keyword, which the name of a folder is too
                item.add_marker(mark)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(scope="session")
def torchvision():
    """The oracle; where it is not installed, the other tests of a file run all the same."""
    return pytest.importorskip("torchvision")


@pytest.fixture(scope="session")
def bccd() -> Path:
    """The folder of the 364 images of blood cells that FCOS_FAST_BCCD names."""
    folder = os.environ.get("FCOS_FAST_BCCD")
    if not folder:
        pytest.skip("FCOS_FAST_BCCD is not set; set it to the folder BCCD of BCCD_Dataset")
    if not Path(folder).is_dir():
        pytest.fail(f"FCOS_FAST_BCCD={folder} is not a folder; set it to the folder BCCD of BCCD_Dataset")
    return Path(folder)
