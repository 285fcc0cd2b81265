"""A run that is killed again and again, at any moment, ends with the same bits as an uninterrupted run.

``make test`` kills once, ``make kill-test`` (``KILLS=40``) forty times without workers and forty times with them.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fcos_fast.engine.checkpoint import load_checkpoint
from fcos_fast.engine.run_folder import read_metrics

KILLS = int(os.environ.get("KILLS", "1"))
EPOCHS = 2 * KILLS + 2
WORKERS = (0, 2) if KILLS > 1 else (2,)
ENVIRONMENT = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(sys.path),
    "CUDA_VISIBLE_DEVICES": "",
}
OPTIONS = {
    "model.backbone": "mobilenet_v2",
    "model.fpn_channels": 32,
    "model.head_channels": 32,
    "model.head_convs": 1,
    "model.min_size": "null",
    "train.batch_size": 2,
    "train.device": "cpu",
    "train.precision": "float32",
    "train.epochs": EPOCHS,
}


class Process:
    """A process that starts a run in ``runs / "train"``, or resumes it.

    Args:
        voc_root: the dataset.
        runs: folder of the run and of the log.
        workers: number of dataloader workers.
    """

    def __init__(self, voc_root: Path, runs: Path, workers: int) -> None:
        folder = runs / "train"
        options = OPTIONS | {"data.root": voc_root, "train.runs": runs, "data.workers": workers}
        arguments = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        if (folder / "last.pt").exists():
            arguments = ["--resume", str(folder)]
        # A log of its own: orphaned workers of a killed process write tracebacks.
        self.log = runs / f"{len(list(runs.glob('*.log')))}.log"
        with open(self.log, "w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "fcos_fast.cli", "train", *arguments],
                env=ENVIRONMENT,
                stdout=log,
                stderr=log,
            )

    def kill(self) -> tuple[bool, list[int]]:
        """Kill the process: whether it had not ended before, and its workers' process ids."""
        pid, workers = self.process.pid, []
        if self.process.poll() is None:
            workers = list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
        self.process.kill()
        status = self.process.wait()
        assert status == -9 or self.succeeded(status), self.log.read_text()
        return status == -9, workers

    def finish(self) -> None:
        """Wait for its successful end."""
        assert self.succeeded(self.process.wait()), self.log.read_text()

    def succeeded(self, status: int) -> bool:
        return status == 0 and "Traceback" not in self.log.read_text()


@pytest.fixture(scope="module")
def whole(voc_root, tmp_path_factory) -> Path:
    """The folder of an uninterrupted run without workers."""
    runs = tmp_path_factory.mktemp("whole")
    Process(voc_root, runs, workers=0).finish()
    return runs / "train"


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.timeout(60 + 60 * KILLS)
@pytest.mark.parametrize("workers", WORKERS)
def test_killed_again_and_again(voc_root, whole, tmp_path, workers):
    """Some kills are during start and resume; most of them within the epochs after a checkpoint was written: in a step,
    an evaluation, or while a file is written."""
    rng, last = random.Random(workers), tmp_path / "train" / "last.pt"
    kills = epochs = 0
    orphans: list[int] = []
    for _ in range(KILLS):
        written = last.exists() and last.stat().st_mtime_ns
        run = Process(voc_root, tmp_path, workers)
        if rng.random() < 0.25:
            time.sleep(rng.uniform(0, 6))
        else:
            while run.process.poll() is None and (last.exists() and last.stat().st_mtime_ns) == written:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.7))
        was_running, children = run.kill()
        kills += was_running
        orphans += children
        if last.exists():
            saved = load_checkpoint(last)  # never a part of one
            assert saved["epoch"] >= epochs
            epochs = saved["epoch"]
    Process(voc_root, tmp_path, workers).finish()
    folder = tmp_path / "train"
    print(f"{kills} kills of {KILLS} in {EPOCHS} epochs, {workers} workers, {len(orphans)} orphans")
    assert kills >= KILLS // 2
    for name in ("last.pt", "best.pt"):
        a, b = load_checkpoint(folder / name), load_checkpoint(whole / name)
        for key in a.keys() - {"config", "metrics"}:
            assert same(a[key], b[key]), f"{name}: {key}"
    rows = [read_metrics(place / "metrics.csv") for place in (folder, whole)]
    assert [row["epoch"] for row in rows[0]] == list(range(1, EPOCHS + 1))
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]
    assert not list(folder.glob(".*"))

    deadline = time.monotonic() + 30  # a worker looks for its parent every few seconds
    while (running := list(filter(is_running, orphans))) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not running, "workers of a killed run do not end"
