"""A run that is killed again and again, at any moment, ends with the bits of one that never was.

``make test`` has one kill, ``make kill-test`` (``KILLS=40``) forty without workers and forty with them.
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
OPTIONS = [
    *("--model.backbone", "mobilenet_v2", "--model.fpn_channels", "32", "--model.head_channels", "32"),
    *(
        "--model.head_convs",
        "1",
        "--model.min_size",
        "null",
        "--train.batch_size",
        "2",
        "--train.device",
        "cpu",
    ),
    *("--train.precision", "float32", "--train.epochs", str(EPOCHS)),
]


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory) -> Path:
    """The folder of a run that nobody interrupts, without workers."""
    runs = tmp_path_factory.mktemp("whole")
    process = start(images, runs, 0)
    assert process.wait() == 0, (runs / "log").read_text()
    return runs / "train"


def start(images: Path, runs: Path, workers: int) -> subprocess.Popen:
    """Begin a run, or resume it where it can be."""
    folder = runs / "train"
    begin = [
        "--data.root",
        str(images),
        "--train.runs",
        str(runs),
        "--data.workers",
        str(workers),
        *OPTIONS,
    ]
    arguments = ["--resume", str(folder)] if (folder / "last.pt").exists() else begin
    command = [sys.executable, "-W", "ignore", "-m", "fcos_fast.cli", "train", *arguments]
    with open(runs / "log", "a") as log:
        return subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log)


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.timeout(60 + 60 * KILLS)
@pytest.mark.parametrize("workers", WORKERS)
def test_killed_again_and_again(images, whole, tmp_path, workers):
    """Some kills come while a process starts and resumes, most of them within the epochs after it wrote a checkpoint:
    in a step, an evaluation, or while a file is written."""
    rng, last = random.Random(workers), tmp_path / "train" / "last.pt"
    kills = epochs = 0
    for _ in range(KILLS):
        process, written = start(images, tmp_path, workers), last.exists() and last.stat().st_mtime_ns
        if rng.random() < 0.25:
            time.sleep(rng.uniform(0, 6))
        else:
            while process.poll() is None and (last.exists() and last.stat().st_mtime_ns) == written:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.7))
        process.kill()
        status = process.wait()
        assert status in (0, -9), (tmp_path / "log").read_text()
        kills += status == -9
        if last.exists():
            saved = load_checkpoint(last)  # whole, whenever the run was killed
            assert saved["epoch"] >= epochs
            epochs = saved["epoch"]
    process = start(images, tmp_path, workers)
    assert process.wait() == 0, (tmp_path / "log").read_text()
    assert "Traceback" not in (tmp_path / "log").read_text()
    folder = tmp_path / "train"
    print(f"{kills} kills of {KILLS} in {EPOCHS} epochs, {workers} workers")
    assert kills >= KILLS // 2
    for name in ("last.pt", "best.pt"):
        a, b = load_checkpoint(folder / name), load_checkpoint(whole / name)
        for key in a.keys() - {"config", "metrics"}:
            assert same(a[key], b[key]), f"{name}: {key}"
    rows = [read_metrics(place / "metrics.csv") for place in (folder, whole)]
    assert [row["epoch"] for row in rows[0]] == list(range(1, EPOCHS + 1))
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]
    assert not list(folder.glob(".*"))
