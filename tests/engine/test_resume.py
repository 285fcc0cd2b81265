"""Resuming with more epochs, moved data, from another folder; and what cannot change."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fcos_fast.cli.main import main
from fcos_fast.data import AugmentConfig, SyntheticConfig, write_voc
from fcos_fast.engine import train as train_module
from fcos_fast.engine.checkpoint import load_checkpoint, save_checkpoint
from fcos_fast.engine.config import Config
from fcos_fast.engine.run_folder import RunInUseError, locked, read_metrics
from fcos_fast.engine.schedule import ScheduleConfig
from fcos_fast.engine.train import TrainingInterrupted, resume, train


@pytest.fixture(scope="module")
def make_steady(tiny_config):
    """One epoch of four steps of a small model; the learning rate does not depend on the length of the run."""

    def make(runs: Path) -> Config:
        config = tiny_config(runs)
        return replace(
            config,
            model=replace(config.model, backbone="mobilenet_v2"),
            schedule=ScheduleConfig(kind="constant", warmup_steps=0),
            train=replace(config.train, epochs=1),
        )

    return make


@pytest.fixture
def steady(make_steady, tmp_path) -> Config:
    return make_steady(tmp_path / "runs")


@pytest.fixture(scope="module")
def untouched(make_steady, tmp_path_factory) -> Path:
    """The folder of a finished run, which tests do not change."""
    torch.set_num_threads(1)
    return train(make_steady(tmp_path_factory.mktemp("finished"))).folder


@pytest.fixture
def finished(untouched, tmp_path) -> Path:
    """A copy of it, for a test that continues the run."""
    return Path(shutil.copytree(untouched, tmp_path / "finished"))


def with_train(config: Config, **values) -> Config:
    return replace(config, train=replace(config.train, **values))


def weights(folder: Path) -> list[torch.Tensor]:
    saved = load_checkpoint(folder / "last.pt")
    return [*saved["model"].values(), *saved["ema"]["model"].values()]


def assert_same_weights(a: Path, b: Path) -> None:
    assert all(torch.equal(x, y) for x, y in zip(weights(a), weights(b), strict=True))


def test_more_epochs_are_those_of_a_longer_run(steady, finished):
    again = resume(finished, lambda run: with_train(run, epochs=2))
    assert again.config.train.epochs == 2
    assert_same_weights(again.folder, train(with_train(steady, epochs=2)).folder)
    assert [row["epoch"] for row in read_metrics(finished / "metrics.csv")] == [1, 2]
    assert "epochs: 2" in (finished / "config.yaml").read_text()


def test_more_steps_continue_within_the_epoch(steady):
    """Six steps end in the middle of the second epoch of four; the third and fourth of its batches come next."""
    part = train(with_train(steady, steps=6)).folder
    resume(part, lambda run: with_train(run, steps=9))
    assert_same_weights(part, train(with_train(steady, steps=9)).folder)
    assert [row["epoch"] for row in read_metrics(part / "metrics.csv")] == [1, 2, 3]


def test_mixed_images_and_repeats_continue_exactly(steady, monkeypatch):
    """After the first of three epochs; the third has no mosaic."""
    config = replace(
        steady,
        data=replace(steady.data, repeat_threshold=0.5, val=""),
        model=replace(steady.model, class_weights="balanced"),
        augment=AugmentConfig(
            (64, 96), (0.7, 1.5), mosaic=0.5, copy_paste=0.5, close_mosaic=1, multi_scale=(0.7, 1.3)
        ),
        train=replace(steady.train, epochs=3),
    )
    real = train_module.train_epoch

    def interrupted(run):
        if run.state.epoch == 1:
            raise KeyboardInterrupt
        return real(run)

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "train_epoch", interrupted)
        with pytest.raises(TrainingInterrupted) as interruption:
            train(config)
    part = resume(interruption.value.folder).folder
    whole = train(config).folder
    assert_same_weights(part, whole)
    saved = load_checkpoint(whole / "last.pt")
    assert saved["step"] > 3 * 4  # images with a rare class came several times
    assert len(saved["config"]["model"]["class_weights"]) == 6


def test_the_step_of_an_old_checkpoint_follows_from_its_configuration(steady):
    part = train(with_train(steady, steps=6)).folder
    old = load_checkpoint(part / "last.pt")
    del old["step"], old["train_split"]
    save_checkpoint(part / "last.pt", old)
    resume(part, lambda run: with_train(run, steps=7))
    assert_same_weights(part, train(with_train(steady, steps=7)).folder)


def test_more_epochs_are_kept_by_an_interruption(finished, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "train_epoch", interrupted)
        with pytest.raises(TrainingInterrupted):
            resume(finished, lambda run: with_train(run, epochs=2))
    assert resume(finished).config.train.epochs == 2
    assert [row["epoch"] for row in read_metrics(finished / "metrics.csv")] == [1, 2]


def test_resuming_a_finished_run_says_so(finished, capsys):
    assert main(["train", "--resume", str(finished)]) == 0
    assert (
        "the run has finished its 1 epochs and is evaluated again; to train longer give --train.epochs 2"
        in capsys.readouterr().out
    )


def test_moved_data(steady, finished, tmp_path, voc_root):
    moved = tmp_path / "moved"
    shutil.copytree(voc_root, moved)
    options = ["--data.root", str(moved), "--train.epochs", "2", "--data.workers", "1"]
    assert main(["train", "--resume", str(finished), *options]) == 0
    assert_same_weights(finished, train(with_train(steady, epochs=2)).folder)
    assert load_checkpoint(finished / "last.pt")["config"]["data"]["root"] == str(moved)


def test_other_data_is_rejected(finished, tmp_path):
    config = SyntheticConfig(size=(64, 96), object_size=(16, 48), max_objects=3)
    write_voc(tmp_path / "other", {"train": 8, "val": 4}, seed=1, config=config)
    with pytest.raises(
        ValueError, match=r"other is not the one that the run in .* started with: 8 images with \d+ boxes"
    ):
        resume(finished, lambda run: replace(run, data=replace(run.data, root=str(tmp_path / "other"))))


def test_a_relative_root_is_found_from_another_folder(steady, voc_root, tmp_path, monkeypatch):
    monkeypatch.chdir(voc_root.parent)
    config = replace(
        steady, data=replace(steady.data, root=voc_root.name), train=replace(steady.train, runs="runs")
    )
    folder = train(config).folder.absolute()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert resume(folder, lambda run: with_train(run, epochs=2)).result is not None
    assert main(["evaluate", "--checkpoint", str(folder / "best.pt")]) == 0
    shutil.rmtree(folder.parent)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train.batch_size", "4"], "--train.batch_size 2 cannot become 4"),
        (["--train.seed=1"], "--train.seed 0 cannot become 1"),
        (["--train.precision", "float32"], "--train.precision 'auto' cannot become 'float32'"),
        (["--optimizer.lr", "0.5"], "--optimizer.lr 0.001 cannot become 0.5"),
        (["--schedule.kind", "cosine"], "--schedule.kind 'constant' cannot become 'cosine'"),
        (["--augment.hue", "0.1"], "--augment.hue 0.0 cannot become 0.1"),
        (["--model.rule.radius", "2"], "--model.rule.radius"),
        (["--model.score_threshold", "0.5"], "--model.score_threshold 0.05 cannot become 0.5"),
        (["--preset", "retinanet"], "--model.detector 'fcos' cannot become 'retinanet'"),
        (["--preset", "torchvision"], "--model.fpn_channels 32 cannot become 256"),
        (["--data.train", "val"], "--data.train 'train' cannot become 'val'"),
        (["--data.val", "train"], "--data.val 'val' cannot become 'train'"),
        (["--train.weights", "a.pt"], "--train.weights 'auto' cannot become 'a.pt'"),
        (["--train.runs", "elsewhere"], "--train.runs"),
    ],
)
def test_what_changes_the_result_is_rejected_by_name(untouched, options, message, capsys):
    before = {path.name: path.read_bytes() for path in untouched.iterdir()}
    assert main(["train", "--resume", str(untouched), "--train.epochs", "2", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "It accepts --data.root, " in error
    assert len(error.splitlines()) == 1
    assert {path.name: path.read_bytes() for path in untouched.iterdir()} == before


def test_what_does_not_change_the_result_is_accepted(finished, tmp_path):
    """Also values that the run has already, from its own configuration."""
    config = str(finished / "config.yaml")
    options = ["--train.evaluate_every", "5", "--train.winograd", "false", "--train.batch_size", "2"]
    assert (
        main(["train", "--config", config, "--resume", str(finished), *options, "--train.device", "cpu"]) == 0
    )
    assert load_checkpoint(finished / "last.pt")["config"]["train"]["evaluate_every"] == 5


def test_fewer_epochs_than_finished_are_rejected(steady):
    folder = train(with_train(steady, epochs=2)).folder
    with pytest.raises(
        ValueError,
        match=r"has taken 8 steps \(2 epochs\), more than the 4 requested; give --train.epochs 2 or more",
    ):
        resume(folder, lambda run: with_train(run, epochs=1))


def test_epochs_of_a_run_of_steps(steady):
    folder = train(with_train(steady, steps=2)).folder
    with pytest.raises(ValueError, match=r"--train.epochs 9: train.steps, 2, decides .* --train.steps null"):
        resume(folder, lambda run: with_train(run, epochs=9))


HOLD = """
import sys, time
from fcos_fast.engine.run_folder import locked
with locked(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """Start another process that locks a folder."""

    def start(folder: Path) -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout.readline() == "locked\n"
        processes.append(process)
        return process

    processes = []
    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_a_second_process_is_rejected_with_the_first_ones_id(finished, other, capsys):
    first = other(finished)
    before = (finished / "last.pt").read_bytes()
    assert main(["train", "--resume", str(finished), "--train.epochs", "2"]) == 2
    assert f"process {first.pid} on " in capsys.readouterr().err
    assert (finished / "last.pt").read_bytes() == before


def test_the_lock_and_temporary_files_of_a_killed_process_are_removed(tmp_path, other):
    first = other(tmp_path)
    (tmp_path / ".0123456789abcdef.part.pt").write_bytes(b"half")
    (tmp_path / ".last.part.pt").write_bytes(b"half, of an older version")
    (tmp_path / "kept.part.pt").write_bytes(b"")
    first.kill()
    first.wait()
    with locked(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "kept.part.pt"]
        with pytest.raises(RunInUseError), locked(tmp_path):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["kept.part.pt"]


def test_an_orphaned_worker_does_not_keep_the_lock(tmp_path):
    code = """
import os, sys, time
from fcos_fast.engine.run_folder import locked
with locked(sys.argv[1]):
    if os.fork() == 0:
        print("child", flush=True)
        time.sleep(20)
        os._exit(0)
    time.sleep(20)
"""
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "child\n"
    process.kill()
    process.wait()
    with locked(tmp_path):
        pass


def test_a_deleted_folder_is_named(steady, monkeypatch):
    train_epoch, folder = train_module.train_epoch, Path(steady.train.runs) / "train"

    def delete(*arguments):
        shutil.rmtree(folder)
        return train_epoch(*arguments)

    monkeypatch.setattr(train_module, "train_epoch", delete)
    with pytest.raises(OSError, match=r"metrics.csv: cannot be written, its folder does not exist"):
        train(steady)
    assert not folder.exists()


def test_a_clock_that_runs_backwards(steady, monkeypatch):
    now = iter(range(10**6, 0, -1))
    monkeypatch.setattr(train_module.time, "perf_counter", lambda: float(next(now)))
    (row,) = read_metrics(train(steady).folder / "metrics.csv")
    assert row["images_per_second"] > 0
