"""Fixtures and settings of all tests."""

from __future__ import annotations

import os
import socket
from pathlib import Path

# Processes of pytest-xdist share the cores. Set before torch is imported; subprocesses of the tests inherit it.
if (workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))) > 1:
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

# Tests, and their subprocesses, download nothing. Set before huggingface_hub is imported.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def pytest_collection_modifyitems(config, items):
    skipped = {}
    if not torch.cuda.is_available():
        skipped["gpu"] = pytest.mark.skip(reason="no CUDA device")
    if "large" not in config.option.markexpr:
        skipped["large"] = pytest.mark.skip(reason="needs much memory; run with -m large")
    for item in items:
        for name, mark in skipped.items():
            if item.get_closest_marker(name):  # not keywords, which include folder names
                item.add_marker(mark)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def _is_local(address: object) -> bool:
    host = address[0] if isinstance(address, tuple) else "localhost"  # a path: a socket of this machine
    return host in ("", "localhost", socket.gethostname(), "0.0.0.0", "::", "::1") or str(host).startswith(
        "127."
    )


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Fail a test that asks another machine, also if it handles the error."""
    asked, connect, resolve = [], socket.socket.connect, socket.getaddrinfo

    def guarded(function, address):
        if not _is_local(address):
            asked.append(address)
            raise OSError(f"a test must not connect to {address}")
        return function()

    monkeypatch.setattr(
        socket.socket, "connect", lambda self, address: guarded(lambda: connect(self, address), address)
    )
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *rest, **named: guarded(lambda: resolve(host, *rest, **named), (host or "",)),
    )
    yield
    assert not asked, f"the test tried to connect to {asked}"


@pytest.fixture
def one_thread():
    """Torch on one CPU thread. Results then match those of subprocesses bit by bit, and small tensors are faster."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=DEVICES)
def device(request):
    return request.param


@pytest.fixture(scope="session")
def torchvision():
    """torchvision as an oracle; tests that need it are skipped if it is not installed."""
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
