"""Processes that torchrun restarts continue their run; data and weights that only some machines have."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fcos_fast
from fcos_fast.cli.main import main
from fcos_fast.engine import restart, train
from fcos_fast.engine.checkpoint import load_checkpoint
from fcos_fast.engine.config import Config, save_config
from fcos_fast.engine.launch import agent
from fcos_fast.engine.restart import AGENTS, run_to_continue
from fcos_fast.engine.run_folder import read_metrics
from fcos_fast.engine.splits import with_absolute_root
from tests.engine import ranks
from tests.engine.ranks import run_ranks


@pytest.fixture
def small(tiny) -> Config:
    """Two epochs without evaluation."""
    return replace(
        tiny,
        model=replace(tiny.model, backbone="mobilenet_v2"),
        data=replace(tiny.data, val=""),
    )


@pytest.fixture
def command(small, tmp_path) -> list[str]:
    """Its command line, with a value that training replaces by another."""
    save_config(small, tmp_path / "given.yaml")
    return ["train", "--config", str(tmp_path / "given.yaml"), "--model.class_weights", "balanced"]


@pytest.fixture
def new_process(monkeypatch):
    """Forget what this process has trained, as a restarted one does."""
    return lambda: monkeypatch.setattr(restart, "_own", set())


def interrupt_second_epoch(monkeypatch) -> None:
    real = train.train_epoch

    def interrupted(run):
        if run.state.epoch == 1:
            raise FloatingPointError("broken memory")
        return real(run)

    monkeypatch.setattr(train, "train_epoch", interrupted)


def test_a_restarted_process_continues_its_run(command, small, monkeypatch, capsys, new_process):
    runs = Path(small.train.runs)
    assert main(command) == 0  # without torchrun
    assert agent() is None
    whole = runs / "train"
    assert not (whole / AGENTS).exists()

    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with monkeypatch.context() as patch:
        interrupt_second_epoch(patch)
        assert main(command) == 1
    capsys.readouterr()
    new_process()
    assert main(command) == 0
    assert f"restarted by torchrun; the run in {runs / 'train2'} continues" in capsys.readouterr().out
    assert sorted(path.name for path in runs.iterdir()) == ["train", "train2"]
    assert [row["epoch"] for row in read_metrics(runs / "train2" / "metrics.csv")] == [1, 2]
    expected, found = (load_checkpoint(folder / "last.pt")["model"] for folder in (whole, runs / "train2"))
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_every_run_of_a_script_continues(small, monkeypatch, new_process, capsys):
    """Of two runs, the second is interrupted; a name that starts like theirs is another one."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    small = replace(small, train=replace(small.train, epochs=1, name="a[b"))
    longer = replace(small, train=replace(small.train, epochs=2))
    other = replace(small, train=replace(small.train, name="a[bc"))
    fcos_fast.train(config=other)
    assert fcos_fast.train(config=small).folder.name == "a[b"
    with monkeypatch.context() as patch:
        interrupt_second_epoch(patch)
        with pytest.raises(FloatingPointError):
            fcos_fast.train(config=longer)
    capsys.readouterr()
    new_process()
    assert fcos_fast.train(config=small).folder.name == "a[b"
    found = fcos_fast.train(config=longer)
    assert (found.folder.name, found.config.train.epochs) == ("a[b2", 2)
    assert capsys.readouterr().out.count("restarted by torchrun; ") == 2
    assert "restarted by torchrun; " in (found.folder / "train.log").read_text()
    assert [row["epoch"] for row in read_metrics(found.folder / "metrics.csv")] == [1, 2]
    assert fcos_fast.train(config=small).folder.name == "a[b3"


def test_another_torchrun_starts_a_new_run(small, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    folder = Path(small.train.runs) / "train"
    folder.mkdir(parents=True)
    host, process, started = agent().split()
    (folder / AGENTS).write_text(f"{host} {process} {int(started) - 1}\n")  # a number that was used again
    assert run_to_continue(small) is None
    (folder / AGENTS).write_text(f"other 5 6\n{agent()}\n")
    assert run_to_continue(small) == folder
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    assert run_to_continue(small) is None


def test_rank_0_moved_to_a_machine_without_the_run(small, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setattr(restart, "gather", lambda value: [None, ("node7", Path("runs/train"))])
    with pytest.raises(
        ValueError, match=r"the run in runs/train on node7, but rank 0 is now on .* --node-rank"
    ):
        run_to_continue(small)


def test_environment_variables_in_the_root(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    config = replace(tiny, data=replace(tiny.data, root="$SCRATCH/a/${USERDATA}"))
    with pytest.raises(ValueError, match=r"data.root=\$SCRATCH/a/\$\{USERDATA\}: .* is not set on "):
        with_absolute_root(config)
    monkeypatch.setenv("USERDATA", "b")
    assert with_absolute_root(config).data.root == str(tmp_path / "a" / "b")
    (tmp_path / "5$").mkdir()
    config = replace(tiny, data=replace(tiny.data, root=str(tmp_path / "5$")))
    assert with_absolute_root(config).data.root == str(tmp_path / "5$")


def options_of_each_rank(small: Config, tmp_path: Path) -> list[str]:
    """The dataset of each rank is in another folder."""
    for rank in range(2):
        shutil.copytree(small.data.root, tmp_path / f"data{rank}")
    save_config(small, tmp_path / "given.yaml")
    root = str(tmp_path / "data$RANK")
    return ["train", "--config", str(tmp_path / "given.yaml"), "--data.root", root]


def test_other_data_on_one_rank(small, tmp_path):
    options = options_of_each_rank(small, tmp_path)
    file = next((tmp_path / "data1" / "Annotations").iterdir())
    file.write_text(file.read_text().replace("<xmin>", "<xmin>1"))
    ended = run_ranks(tmp_path, 2, ranks.command_line, *options)
    assert [len(e.err.splitlines()) for e in ended] == [1, 1], ended
    for one in ended:
        assert f"{tmp_path / 'data1'} on {os.uname().nodename} has 8 images with " in one.err
    assert not Path(small.train.runs).exists()


def test_only_rank_0_needs_the_weights_and_the_run(small, tmp_path):
    """The file and the folder are named by a path that exists for rank 0 alone."""
    weights = train.train(replace(small, train=replace(small.train, epochs=1, name="weights"))).folder
    options = options_of_each_rank(small, tmp_path)
    (tmp_path / "0").mkdir()
    shutil.copy(weights / "best.pt", tmp_path / "0")
    given = ["--train.weights", "best.pt", "--train.runs", "here", "--train.epochs", "1"]
    ended = run_ranks(tmp_path, 2, ranks.in_own_folder, tmp_path, *options, *given)
    assert [e.status for e in ended] == [0, 0], ended
    root = ["--data.root", str(tmp_path / "data$RANK")]
    again = ["train", "--resume", "here/train", "--train.epochs", "2", *root]
    ended = run_ranks(tmp_path, 2, ranks.in_own_folder, tmp_path, *again)
    assert [e.status for e in ended] == [0, 0], ended
    assert load_checkpoint(tmp_path / "0" / "here" / "train" / "last.pt")["epoch"] == 2
    assert list((tmp_path / "1").iterdir()) == []


def test_the_detector_of_a_checkpoint_that_rank_0_alone_has(small, tmp_path):
    """It is the detector of all ranks; other options of rank 1 do not count either."""
    weights = train.train(replace(small, train=replace(small.train, epochs=1, name="weights"))).folder
    (tmp_path / "0").mkdir()
    shutil.copy(weights / "best.pt", tmp_path / "0")
    given = ["--data.root", small.data.root, "--data.val", "", "--train.weights", "best.pt"]
    given += ["--train.runs", "here", "--train.batch_size", "2", "--train.device", "cpu"]
    given += ["--train.steps", "1{RANK}"]  # 10 and 11
    ended = run_ranks(tmp_path, 2, ranks.in_own_folder, tmp_path, "train", *given)
    assert [e.status for e in ended] == [0, 0], ended
    saved = load_checkpoint(tmp_path / "0" / "here" / "train" / "last.pt")
    assert saved["step"] == 10
    assert saved["model_config"]["backbone"] == "mobilenet_v2"
