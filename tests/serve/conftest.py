"""The dataset and checkpoint of the command line's tests, and servers in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.conftest import checkpoint, voc_root  # noqa: F401  # fixtures
from tests.tree import ROOT, package_environment

pytest.importorskip("fastapi", reason="the server needs it; install fcos_fast[serve]")


@dataclass
class Server:
    """A running ``fcos-fast serve``."""

    process: subprocess.Popen
    address: str
    first_line: str

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Send the signal; exit status and the rest of the output."""
        self.process.send_signal(number)
        output, _ = self.process.communicate(timeout=60)
        return self.process.returncode, output


@contextmanager
def serving(*options: str) -> Iterator[Server]:
    """A server on a free port of this machine."""
    command = [sys.executable, "-m", "fcos_fast.cli", "serve", "--port", "0", "--threads", "1", *options]
    process = subprocess.Popen(
        command,
        env=package_environment(ROOT) | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), line + process.stdout.read()
        yield Server(process, line.split()[0], line)
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def serve() -> Callable:
    return serving


@pytest.fixture(scope="session")
def images(voc_root) -> list[Path]:  # noqa: F811
    return sorted((voc_root / "JPEGImages").iterdir())


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    """Requests to this machine stay on it."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
