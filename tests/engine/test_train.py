"""Whole runs on a tiny dataset: their files, and that an interruption does not change the result."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("jsonargparse")
from fcos_fast.cli.train import parse_train_options
from fcos_fast.engine import run as run_module
from fcos_fast.engine import train as train_module
from fcos_fast.engine.checkpoint import load_checkpoint
from fcos_fast.engine.config import Config, save_config
from fcos_fast.engine.run_folder import read_metrics
from fcos_fast.engine.schedule import ScheduleConfig
from fcos_fast.engine.train import NonFiniteLossError, TrainingInterrupted, resume, train
from fcos_fast.models import RetinaNetConfig, build_backbone
from fcos_fast.models.winograd import WinogradConv2d

TIMING = ("seconds", "images_per_second")


def assert_same_run(a: Path, b: Path) -> None:
    """Bit-identical weights, averages, optimizer and random states, and the same metrics except timings."""
    for name in ("last.pt", "best.pt"):
        x, y = load_checkpoint(a / name), load_checkpoint(b / name)
        for key in x.keys() - {"config", "metrics"}:
            assert_same(x[key], y[key], f"{name}:{key}")
    rows = [read_metrics(folder / "metrics.csv") for folder in (a, b)]
    for table in rows:
        for row in table:
            for column in TIMING:
                row.pop(column)
    assert_same(*rows, "metrics.csv")


def assert_same(x, y, where):
    assert type(x) is type(y), where
    if isinstance(x, torch.Tensor):
        assert torch.equal(x, y), where
    elif isinstance(x, dict):
        assert x.keys() == y.keys(), where
        for key in x:
            assert_same(x[key], y[key], f"{where}.{key}")
    elif isinstance(x, (list, tuple)):
        assert len(x) == len(y), where
        for i, (a, b) in enumerate(zip(x, y, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    else:
        assert x == y, where


def interrupt_at(monkeypatch, step: int) -> None:
    """Raise KeyboardInterrupt in an optimizer step, counted from 1 over the whole run."""
    real, count = train_module.set_learning_rate, iter(range(1, 10**9))

    def interrupted(*arguments):
        if next(count) == step:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(train_module, "set_learning_rate", interrupted)


def test_files_metrics_and_result(whole_run):
    _, outcome = whole_run
    assert sorted(p.name for p in outcome.folder.iterdir()) == [
        "best.pt",
        "config.yaml",
        "last.pt",
        "metrics.csv",
        "train.log",
    ]
    rows = read_metrics(outcome.folder / "metrics.csv")
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[-1]["ap"] == pytest.approx(outcome.result.ap, abs=1e-6)
    for row in rows:
        parts = (row["loss_classification"], row["loss_bbox_regression"], row["loss_bbox_ctrness"])
        assert row["loss"] == pytest.approx(sum(parts), rel=1e-4)
        assert 0 <= row["ap"] <= row["ap50"] <= 1
    assert len(outcome.detections) == len(outcome.val_set) == 4
    assert not outcome.model.training


def test_loss_decreases(whole_run):
    rows = read_metrics(whole_run[1].folder / "metrics.csv")
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_best_is_the_best_epoch(whole_run):
    folder = whole_run[1].folder
    rows, best = read_metrics(folder / "metrics.csv"), load_checkpoint(folder / "best.pt")
    top = max(row["ap"] for row in rows)
    assert best["epoch"] == max(row["epoch"] for row in rows if row["ap"] == top)  # the last of equals
    assert "optimizer" not in best
    assert best["categories"]["names"] == list(whole_run[1].val_set.categories.names)


def test_saved_config_reproduces_the_run(whole_run, tmp_path):
    """A run from config.yaml, read by the command line, is bit-identical."""
    config, outcome = whole_run
    yaml = str(outcome.folder / "config.yaml")
    again = parse_train_options(["--config", yaml, "--train.runs", str(tmp_path)]).config()
    assert replace(again, train=config.train) == outcome.config
    assert_same_run(train(again).folder, outcome.folder)


@pytest.mark.parametrize("step", [2, 7])
def test_interrupted_and_resumed_is_bit_identical(whole_run, tmp_path, monkeypatch, step):
    """Steps 2 and 7 are in epochs 1 and 2 of four steps each."""
    config, outcome = whole_run
    config = replace(config, train=replace(config.train, runs=str(tmp_path)))
    with monkeypatch.context() as patch:
        interrupt_at(patch, step)
        with pytest.raises(TrainingInterrupted) as interruption:
            train(config)
    folder = interruption.value.folder
    assert load_checkpoint(folder / "last.pt")["epoch"] == (step - 1) // 4
    torch.rand(3)  # another random state than that of the interrupted process
    assert_same_run(resume(folder).folder, outcome.folder)


def test_a_retinanet_interrupted_and_resumed_is_bit_identical(tiny, tmp_path, monkeypatch):
    small = {
        name: getattr(tiny.model, name)
        for name in ("backbone", "fpn_channels", "head_channels", "head_convs")
    }
    config = replace(tiny, model=RetinaNetConfig(**small, min_size=None, max_size=None))
    whole = train(config)
    rows = read_metrics(whole.folder / "metrics.csv")
    assert rows[1]["loss"] < rows[0]["loss"]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6)
        with pytest.raises(TrainingInterrupted) as interruption:
            train(config)
    assert_same_run(resume(interruption.value.folder).folder, whole.folder)


def test_resuming_a_finished_run_evaluates_it_again(whole_run):
    _, outcome = whole_run
    before = (outcome.folder / "metrics.csv").read_text()
    again = resume(outcome.folder)
    assert again.result.summary() == pytest.approx(outcome.result.summary(), nan_ok=True)
    assert (outcome.folder / "metrics.csv").read_text() == before


def test_killed_in_the_middle_of_an_epoch(whole_run, tmp_path):
    """kill -9 after the first epoch was saved; resumed in another process it ends with the same bits."""
    config, outcome = whole_run
    process, folder = start_and_wait_for_an_epoch(config, tmp_path)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert load_checkpoint(folder / "last.pt")["epoch"] == 1
    subprocess.run([*COMMAND, "--resume", str(folder)], env=ENVIRONMENT, check=True, capture_output=True)
    assert_same_run(folder, outcome.folder)


def test_ctrl_c_ends_with_the_command_to_resume(whole_run, tmp_path):
    process, folder = start_and_wait_for_an_epoch(whole_run[0], tmp_path)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"fcos-fast train --resume {folder}" in error
    assert "Traceback" not in error
    assert not list(folder.glob(".*"))  # no half-written file


COMMAND = [sys.executable, "-m", "fcos_fast.cli", "train"]
ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(sys.path),
    "CUDA_VISIBLE_DEVICES": "",
}


def start_and_wait_for_an_epoch(config: Config, runs: Path) -> tuple[subprocess.Popen, Path]:
    """Start a run in a process; return in its second epoch."""
    config = replace(config, train=replace(config.train, runs=str(runs)))
    save_config(config, runs / "config.yaml")
    process = subprocess.Popen(
        [*COMMAND, "--config", str(runs / "config.yaml")],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # background jobs of a shell ignore SIGINT, and so would their children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for line in process.stdout:  # printed after the checkpoint of the epoch
        if line.startswith("epoch 1/2"):
            time.sleep(0.05)
            return process, runs / "train"
    raise AssertionError(process.communicate()[1])


def test_loss_that_is_not_finite_ends_the_run(tiny):
    wild = replace(tiny, optimizer=replace(tiny.optimizer, lr=1e18, clip_norm=0))
    with pytest.raises(
        NonFiniteLossError, match=r"epoch 1/2, step \d: the loss is not finite .* optimizer.lr"
    ):
        train(wild)
    assert load_checkpoint(Path(tiny.train.runs) / "train" / "last.pt")["epoch"] == 0


def test_without_validation_average_and_bfloat16(tiny):
    config = replace(
        tiny,
        data=replace(tiny.data, val=""),
        train=replace(
            tiny.train,
            epochs=1,
            ema_decay=0,
            precision="float32",
            channels_last=False,
            loggers=("tensorboard",),
        ),
    )
    outcome = train(config)
    assert outcome.result is None
    assert list(outcome.folder.glob("events.out.tfevents.*"))
    assert load_checkpoint(outcome.folder / "last.pt")["ema"] is None
    assert load_checkpoint(outcome.folder / "best.pt")["epoch"] == 1


def test_the_last_epoch_is_always_evaluated(tiny):
    config = replace(tiny, train=replace(tiny.train, epochs=3, evaluate_every=5))
    rows = read_metrics(train(config).folder / "metrics.csv")
    assert ["ap" in row for row in rows] == [False, False, True]


def test_starts_from_given_weights(whole_run, tiny):
    best = str(whole_run[1].folder / "best.pt")
    frozen = replace(
        tiny,
        optimizer=replace(tiny.optimizer, lr=1e-12),
        train=replace(tiny.train, weights=best, epochs=1, ema_decay=0),
    )
    weights = load_checkpoint(best)["model"]
    begun = load_checkpoint(train(frozen).folder / "last.pt")["model"]
    for name, value in weights.items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(begun[name], value, rtol=1e-4, atol=1e-6)


def test_missing_root(tiny):
    with pytest.raises(ValueError, match=r"--data\.root"):
        train(replace(tiny, data=replace(tiny.data, root="")))
    assert not Path(tiny.train.runs).exists()


@pytest.mark.parametrize(
    ("batch_size", "normalizer", "message"),
    [
        (3, "weights", r"train.batch_size=3 cannot be split into train.accumulate=2 .*; use a multiple of 2"),
        (2, "moving_average", "train.accumulate needs model.normalizer weights, positives or image"),
    ],
)
def test_batches_that_cannot_be_split(tiny, batch_size, normalizer, message):
    model = replace(tiny.model, normalizer=normalizer)
    options = replace(tiny.train, batch_size=batch_size, accumulate=2)
    with pytest.raises(ValueError, match=message):
        train(replace(tiny, model=model, train=options))
    assert not Path(tiny.train.runs).exists()


@pytest.mark.parametrize("asked", [True, False])
def test_training_uses_winograds_method(tiny, monkeypatch, asked):
    monkeypatch.setattr("fcos_fast.models.winograd.MIN_CHANNELS", 32)
    models = []
    real = run_module.ExponentialMovingAverage

    def seen(model, *arguments):
        models.append(model)
        return real(model, *arguments)

    monkeypatch.setattr(run_module, "ExponentialMovingAverage", seen)
    result = train(replace(tiny, train=replace(tiny.train, epochs=1, winograd=asked)))
    models.append(result.model)  # the averaged one, which is evaluated
    assert len(models) == 2
    for model in models:
        assert any(isinstance(module, WinogradConv2d) for module in model.modules()) is asked


def test_a_run_of_steps_ends_within_an_epoch_and_resumes(tiny, monkeypatch):
    """Six steps are one and a half epochs of four; the schedule ends there."""
    schedule = ScheduleConfig(kind="steps", milestones=(5,), milestone_unit="step", warmup_steps=0)
    config = replace(tiny, train=replace(tiny.train, epochs=50, steps=6), schedule=schedule)
    whole = train(config)
    rows = read_metrics(whole.folder / "metrics.csv")
    assert [row["epoch"] for row in rows] == [1, 2]
    assert [row["lr"] for row in rows] == pytest.approx([tiny.optimizer.lr, tiny.optimizer.lr * 0.1])
    state = load_checkpoint(whole.folder / "last.pt")["optimizer"]["state"]
    assert {int(entry["step"]) for entry in state.values()} == {6}

    epochs = []

    def once(*arguments):
        if epochs:
            raise KeyboardInterrupt
        epochs.append(1)
        return train_epoch(*arguments)

    train_epoch = train_module.train_epoch
    monkeypatch.setattr(train_module, "train_epoch", once)
    with pytest.raises(TrainingInterrupted) as interruption:
        train(replace(config, train=replace(config.train, name="second")))
    monkeypatch.undo()
    again = resume(interruption.value.folder)
    assert_same_run(again.folder, whole.folder)


def test_a_run_starts_from_a_pretrained_backbone_and_resumes_without_the_file(tiny, tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    weights = build_backbone("resnet18").state_dict()
    torch.save(weights, path)
    model = replace(tiny.model, norm="frozen", trainable_stages=3)
    config = replace(tiny, model=model, train=replace(tiny.train, weights=str(path)))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 6)
        with pytest.raises(TrainingInterrupted) as interruption:
            train(config)
    path.unlink()
    outcome = resume(interruption.value.folder)
    state = outcome.model.backbone.body.state_dict()
    assert torch.equal(state["conv1.weight"], weights["conv1.weight"])  # frozen
    assert not torch.equal(state["layer4.0.conv1.weight"], weights["layer4.0.conv1.weight"])
