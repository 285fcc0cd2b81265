"""Several processes, each a real one: they compute what one computes, and none outlives another's failure."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fcos_fast.data import load_dataset
from fcos_fast.engine import distributed
from fcos_fast.engine.checkpoint import load_checkpoint, model_from_checkpoint
from fcos_fast.engine.config import Config, save_config
from fcos_fast.engine.evaluate import evaluate
from fcos_fast.engine.launch import ProcessLostError
from fcos_fast.engine.run_folder import read_metrics
from fcos_fast.engine.splits import load_splits
from fcos_fast.engine.train import resume, train
from fcos_fast.models.winograd import use_winograd
from tests.engine import ranks
from tests.engine.ranks import Ranks, run_ranks

pytestmark = pytest.mark.timeout(120)

ENVIRONMENT = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join(sys.path),
    "CUDA_VISIBLE_DEVICES": "",
}


@pytest.fixture(scope="module")
def config(tiny_config, tmp_path_factory) -> Config:
    """Two epochs of four steps of two images; without batch norm and padding, so that images are independent."""
    config = tiny_config(tmp_path_factory.mktemp("runs"))
    model = replace(config.model, norm="group", min_size=(48, 64), size_divisor=128)
    # not AdamW, which divides rounding errors by gradients as small as they are
    optimizer = replace(config.optimizer, name="sgd", lr=1e-3)
    return replace(
        config,
        model=model,
        optimizer=optimizer,
        augment=replace(config.augment, size=(64, 96), scale=(0.7, 1.3)),
        # also on processors for which auto is bfloat16
        train=replace(config.train, precision="float32"),
    )


@pytest.fixture(scope="module")
def single(config) -> Path:
    """The folder of a run in one process."""
    torch.set_num_threads(1)
    return train(renamed(config, "single")).folder


@pytest.fixture(scope="module")
def double(config, tmp_path_factory) -> tuple[Path, list[ranks.Ended], list]:
    """The same run in two processes: its folder, their outputs and their results."""
    results = tmp_path_factory.mktemp("results")
    ended = run_ranks(results, 2, ranks.train_run, renamed(config, "double"), results)
    assert [e.status for e in ended] == [0, 0], ended
    return (
        Path(config.train.runs) / "double",
        ended,
        [torch.load(results / f"{rank}.pt") for rank in range(2)],
    )


def renamed(config: Config, name: str) -> Config:
    return replace(config, train=replace(config.train, name=name))


def copied(folder: Path, target: Path) -> Path:
    return Path(shutil.copytree(folder, target))


def options(config: Config, tmp_path: Path, name: str = "train") -> tuple[str, ...]:
    """Command line of a run in ``tmp_path``."""
    file = tmp_path / "given.yaml"
    save_config(replace(config, train=replace(config.train, runs=str(tmp_path), name=name)), file)
    return "train", "--config", str(file)


def assert_close_runs(a: Path, b: Path) -> None:
    """The same metrics and weights up to rounding."""
    tables = [read_metrics(folder / "metrics.csv") for folder in (a, b)]
    for x, y in zip(*tables, strict=True):
        for name in x.keys() | y.keys():
            if name.startswith(("loss", "lr", "epoch")):
                assert x[name] == pytest.approx(y[name], rel=1e-4), name
    saved = [load_checkpoint(folder / "last.pt") for folder in (a, b)]
    assert saved[0]["epoch"] == saved[1]["epoch"] == 2
    for part in (lambda s: s["model"], lambda s: s["ema"]["model"]):
        for name, value in part(saved[0]).items():
            torch.testing.assert_close(value, part(saved[1])[name], rtol=1e-3, atol=1e-4, msg=name)


# The same results as with one process


def batch_of(*boxes: list[list[float]]) -> tuple[list, list]:
    """A batch of images of one size with these boxes."""
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, 64, 96, generator=generator) for _ in boxes]
    targets = [
        {"boxes": torch.tensor(b).reshape(-1, 4), "labels": torch.arange(len(b)) % 3}
        for b in map(list, boxes)
    ]
    return images, targets


BOX, TINY, OTHER = [10.0, 8.0, 60.0, 50.0], [40.0, 40.0, 47.0, 47.0], [3.0, 5.0, 40.0, 30.0]
BATCHES = {
    "more boxes on one": ({"norm": "group"}, *batch_of([BOX], [OTHER, BOX, TINY])),
    "frozen norm": ({"norm": "frozen", "trainable_stages": 3}, *batch_of([BOX, TINY], [OTHER])),
    "no box on one": ({"norm": "group"}, *batch_of([], [BOX])),
    "no box at all": ({"norm": "group"}, *batch_of([], [])),
    "one positive location": ({"norm": "group", "centerness_weighted": False}, *batch_of([], [TINY])),
    "retinanet": ({"norm": "group", "preset": "retinanet"}, *batch_of([], [OTHER, BOX, TINY])),
    "retinanet, image by image": (
        {"norm": "group", "preset": "torchvision-retinanet"},
        *batch_of([BOX, TINY], [OTHER], [], [BOX]),
    ),
    "two images each": ({"norm": "group"}, *batch_of([BOX], [OTHER], [], [TINY, BOX])),
}


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory) -> dict[str, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("batches")
    ended = run_ranks(folder, 2, ranks.losses_and_gradients, list(BATCHES.values()), folder / "found.pt")
    assert [e.status for e in ended] == [0, 0], ended
    return dict(zip(BATCHES, torch.load(folder / "found.pt"), strict=True))


@pytest.mark.parametrize("name", BATCHES)
def test_losses_and_gradients_are_those_of_one_process(of_two_processes, name):
    found, expected = of_two_processes[name], ranks.one_process(*BATCHES[name])
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        # float64, except the normalizers, which are float32 sums
        scale = value.abs().max().item()
        torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-6 * scale + 1e-13)


def test_a_run_is_that_of_one_process(single, double):
    assert_close_runs(single, double[0])


def test_parts_of_a_batch_and_a_stop_are_those_of_one_process(config, tmp_path):
    """Four images in two processes of two parts each; the callback of rank 0 stops all within the epoch."""
    whole = replace(config, train=replace(config.train, batch_size=4, epochs=2, runs=str(tmp_path)))
    alone = train(renamed(whole, "alone"), [ranks.StopAt(3)])
    parts = replace(whole, train=replace(whole.train, accumulate=2, name="parts"))
    ended = run_ranks(tmp_path, 2, ranks.train_until, parts, 3, tmp_path)
    assert [e.status for e in ended] == [0, 0], ended
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    assert found[0] == found[1] == ("enough", found[0][1])
    assert load_checkpoint(tmp_path / "parts" / "last.pt")["step"] == 3
    assert_close_runs(tmp_path / "parts", alone.folder)


def test_rank_0_alone_writes_and_prints(single, double):
    folder, (first, second), _ = double
    assert sorted(p.name for p in folder.iterdir()) == sorted(p.name for p in single.iterdir())
    assert not folder.with_name("double2").exists()
    assert "epoch 2/2" in first.out
    assert second.out == second.err == first.err == ""


def test_every_rank_has_the_result(double):
    folder, _, ((a, ap, detections), (b, same_ap, nothing)) = double
    assert a == b == str(folder)
    assert ap == pytest.approx(same_ap, nan_ok=True)
    assert len(detections) == 4
    assert nothing == []


def test_two_runs_of_a_script(config, tmp_path):
    """``fcos_fast.train`` twice: rank 0 alone writes the reports, of its detections."""
    config = replace(config, train=replace(config.train, epochs=1, runs=str(tmp_path / "runs")))
    ended = run_ranks(tmp_path, 2, ranks.as_a_function, config, 2)
    assert [e.status for e in ended] == [0, 0], ended
    folders = [tmp_path / "runs" / name for name in ("train", "train2")]
    assert sorted((tmp_path / "runs").iterdir()) == folders
    assert [ended[0].out.count(f"report   {folder / 'report.html'}") for folder in folders] == [1, 1]
    assert ended[1].out == ended[1].err == ""


@pytest.mark.parametrize("function", ["train_run", "command_line", "with_nan_on"])
def test_no_thread_of_gloo_is_left_running(config, tmp_path, function):
    """One that releases a tensor while the interpreter exits aborts the process."""
    short = replace(config, data=replace(config.data, val=""), train=replace(config.train, epochs=1))
    arguments = {
        "train_run": (replace(short, train=replace(short.train, runs=str(tmp_path))), tmp_path),
        "command_line": options(short, tmp_path),
        "with_nan_on": (1, 3, *options(short, tmp_path)),
    }[function]
    ended = run_ranks(tmp_path, 2, ranks.threads_after, getattr(ranks, function), *arguments)
    assert [e.out.splitlines()[-1] for e in ended] == ["threads:"] * 2


@pytest.mark.parametrize("count", [2, 3])
def test_detections_have_the_bits_of_one_process(voc_root, tmp_path, count):
    """Seven images in batches of two: the ranks have different numbers of images."""
    dataset = load_dataset(voc_root, "train")
    dataset.records = dataset.records[:7]
    model = ranks.small_model(num_classes=len(dataset.categories), prior=0.5).eval()
    result, detections = evaluate(model, dataset, batch_size=2)
    assert sum(len(found["boxes"]) for found in detections) > 100
    ended = run_ranks(tmp_path, count, ranks.evaluated, model, dataset, tmp_path)
    assert [e.status for e in ended] == [0] * count, ended
    shared = [torch.load(tmp_path / f"{rank}.pt") for rank in range(count)]
    for summary, _ in shared:
        assert summary == pytest.approx(result.summary(), nan_ok=True, abs=0)
    for a, b in zip(detections, shared[0][1], strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_evaluation_uses_the_batch_norms_of_rank_0(config, tmp_path):
    """Each rank has the running statistics of its own images; those of rank 0 are saved."""
    model = replace(config.model, norm="batch", prior=0.5)
    config = replace(config, model=model, train=replace(config.train, epochs=1, runs=str(tmp_path)))
    ended = run_ranks(tmp_path, 2, ranks.train_run, config, tmp_path)
    assert [e.status for e in ended] == [0, 0], ended
    _, _, detections = torch.load(tmp_path / "0.pt")
    saved, _ = model_from_checkpoint(load_checkpoint(tmp_path / "train" / "last.pt"))
    # as in training; memory format and Winograd's method change the last bits
    saved.to(memory_format=torch.channels_last)
    use_winograd(saved)
    _, expected = evaluate(saved, load_splits(config)[1], batch_size=2)
    assert sum(len(found["boxes"]) for found in expected) > 100
    for a, b in zip(detections, expected, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


# Failures


@pytest.fixture(scope="module")
def killed(config, tmp_path_factory) -> tuple[Path, list[ranks.Ended]]:
    """A run whose rank 1 is killed in the second epoch, and how the processes ended."""
    folder = tmp_path_factory.mktemp("killed")
    with Ranks(folder, 2, ranks.command_line, *options(config, folder)) as processes:
        processes.wait_for("epoch 1/2")
        processes.signal(1, signal.SIGKILL)
        return folder / "train", processes.wait(20)


def test_killed_process_ends_the_others(killed):
    folder, (first, second) = killed
    assert second.status == -signal.SIGKILL
    assert first.status == 1
    assert len(first.err.splitlines()) == 1
    assert "rank 0 ends: it lost the connection to another process, which was killed" in first.err
    assert f"continue with: fcos-fast train --resume {folder}" in first.err
    assert load_checkpoint(folder / "last.pt")["epoch"] == 1


def test_killed_run_resumes_with_one_process(killed, single, tmp_path):
    assert_close_runs(resume(copied(killed[0], tmp_path / "run")).folder, single)


def test_killed_run_resumes_with_two_to_the_same_bits(killed, double, tmp_path):
    folder = copied(killed[0], tmp_path / "run")
    ended = run_ranks(tmp_path, 2, ranks.command_line, "train", "--resume", str(folder))
    assert [e.status for e in ended] == [0, 0], ended
    saved, whole = (load_checkpoint(f / "last.pt") for f in (folder, double[0]))
    assert all(torch.equal(value, saved["model"][name]) for name, value in whole["model"].items())
    assert all(torch.equal(v, saved["ema"]["model"][k]) for k, v in whole["ema"]["model"].items())


def test_run_of_one_process_resumes_with_two(config, single, monkeypatch, tmp_path):
    stopped = interrupted_after_an_epoch(renamed(config, "stopped"), monkeypatch)
    folder = copied(stopped, tmp_path / "run")
    ended = run_ranks(tmp_path, 2, ranks.command_line, "train", "--resume", str(folder))
    assert [e.status for e in ended] == [0, 0], ended
    assert_close_runs(folder, single)


def interrupted_after_an_epoch(config: Config, monkeypatch) -> Path:
    real = ranks.train.train_epoch

    def interrupted(run):
        if run.state.epoch == 1:
            raise KeyboardInterrupt
        return real(run)

    with monkeypatch.context() as patch:
        patch.setattr(ranks.train, "train_epoch", interrupted)
        with pytest.raises(ranks.train.TrainingInterrupted) as interruption:
            train(config)
    return interruption.value.folder


def torchrun(*arguments: str) -> subprocess.Popen[str]:
    """Start ``fcos-fast`` in two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    return subprocess.Popen(
        [*command, "-m", "fcos_fast.cli", *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_torchrun(config, tmp_path):
    """To the end of a run of one epoch."""
    config = replace(config, data=replace(config.data, val=""), train=replace(config.train, epochs=1))
    with torchrun(*options(config, tmp_path)) as agent:
        out, err = agent.communicate(timeout=100)
    assert agent.returncode == 0, err
    assert out.count("epoch 1/1") == 1
    assert load_checkpoint(tmp_path / "train" / "last.pt")["epoch"] == 1


def test_torchrun_names_the_rank_of_a_killed_process(config, tmp_path):
    """And ends the others, which say how to continue."""
    config = replace(config, data=replace(config.data, val=""), train=replace(config.train, epochs=50))
    with torchrun(*options(config, tmp_path)) as agent:
        for line in agent.stdout:
            if line.startswith("epoch 1/50"):
                break
        children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
        (second,) = (pid for pid in children if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes())
        os.kill(int(second), signal.SIGKILL)
        _, err = agent.communicate(timeout=40)
    assert agent.returncode == 1
    assert re.search(r"Root Cause.* rank +: 1 .*SIGKILL", err, re.DOTALL), err
    assert f"continue with: fcos-fast train --resume {tmp_path / 'train'}" in err


def test_loss_that_is_not_finite_on_one_rank_ends_all(config, tmp_path):
    ended = run_ranks(tmp_path, 2, ranks.with_nan_on, 1, 3, *options(config, tmp_path), seconds=30)
    assert [e.status for e in ended] == [1, 1], ended
    lines = (ended[0].err + ended[1].err).splitlines()
    assert len(lines) == 1, lines  # both find it; the first reports it
    assert "epoch 1/2, step 3: the loss is not finite" in lines[0]
    found = json.loads((tmp_path / "train" / "diagnosis.json").read_text())
    assert (found["epoch"], found["step"]) == (1, 3)
    assert [len(process["images"]) for process in found["processes"]] == [1, 1]
    assert not any("failed" in process for process in found["processes"])
    assert load_checkpoint(tmp_path / "train" / "last.pt")["epoch"] == 0


@pytest.mark.parametrize("index", range(4))
def test_the_image_whose_loss_is_not_finite(config, tmp_path, index):
    """In any part of any rank, in bfloat16 and with a moving average."""
    config = replace(
        config, train=replace(config.train, batch_size=8, accumulate=2, precision="bfloat16", epochs=1)
    )
    name = load_splits(config)[0].records[index].name
    ended = run_ranks(tmp_path, 2, ranks.with_nan_image, index, *options(config, tmp_path), seconds=30)
    assert [e.status for e in ended] == [1, 1], ended
    (line,) = (ended[0].err + ended[1].err).splitlines()
    assert f"for image {name} (" in line
    found = json.loads((tmp_path / "train" / "diagnosis.json").read_text())["processes"]
    assert [{place["image"] for place in process["places"]} for process in found] == [
        {name} if name in process["images"] else set() for process in found
    ]
    assert sum(len(process["images"]) for process in found) == 8


@pytest.mark.parametrize("interrupted", [(0, 1), (1,)])
def test_ctrl_c(config, tmp_path, interrupted):
    """In all processes, as from torchrun, or in one of them."""
    config = replace(config, train=replace(config.train, epochs=50))
    with Ranks(tmp_path, 2, ranks.command_line, *options(config, tmp_path)) as processes:
        processes.wait_for("epoch 1/50")
        for rank in interrupted:
            processes.signal(rank, signal.SIGINT)
        ended = processes.wait(20)
    assert all(e.status in (1, 130) for e in ended), ended
    said = ended[0].err + ended[1].err
    assert f"continue with: fcos-fast train --resume {tmp_path / 'train'}" in said
    assert "Traceback" not in said
    if interrupted == (1,):
        assert "rank 0 ends: rank 1 was interrupted" in ended[0].err
    assert not list((tmp_path / "train").glob(".*"))


def test_other_ranks_report_the_first_failure(tmp_path):
    ended = run_ranks(tmp_path, 2, ranks.fails_on, 1, seconds=20)
    assert "ValueError: 7 is\nno box" in ended[1].err
    assert ended[0].err.splitlines()[-1].endswith("ProcessLostError: rank 0 ends: rank 1 failed: 7 is no box")


def test_sigterm_while_a_lost_connection_is_handled_does_not_hide_it():
    """torchrun sends it within a tenth of a second."""
    failure = distributed._FirstFailure(torch.distributed.HashStore())
    failure.advice = "continue"
    interruption = KeyboardInterrupt()
    interruption.__context__ = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    with pytest.raises(ProcessLostError, match="it lost the connection .*; continue"):
        failure.raise_if_lost(interruption)


def test_processes_can_form_a_second_group(tmp_path):
    ended = run_ranks(tmp_path, 2, ranks.two_groups, seconds=20)
    assert [e.status for e in ended] == [0, 0], ended


def test_process_that_does_not_answer(tmp_path):
    with Ranks(tmp_path, 2, ranks.silent_on, 1, 2.0) as processes:
        processes.processes[0].join(30)
        assert processes.processes[0].exitcode == 1
        assert (
            "rank 0 ends: it lost the connection to another process, which was killed or did not answer"
            in (processes.read(0, "err"))
        )


MISTAKES: dict[str, tuple[Callable[[Config], Config], str]] = {
    "batch size": (lambda c: replace(c, train=replace(c.train, batch_size=3)), "use a multiple of 2"),
    "parts": (
        lambda c: replace(c, train=replace(c.train, batch_size=2, accumulate=2)),
        "train.accumulate=2 equal parts, in each of 2 processes; use a multiple of 4",
    ),
    "sync": (
        lambda c: replace(c, train=replace(c.train, sync_batch_norm=True)),
        "sync_batch_norm needs GPUs",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_reported_once(config, tmp_path, name):
    change, message = MISTAKES[name]
    ended = run_ranks(tmp_path, 2, ranks.command_line, *options(change(config), tmp_path), seconds=20)
    lines = (ended[0].err + ended[1].err).splitlines()
    assert len(lines) == 1, lines
    assert message in lines[0]
    assert all(e.status in (1, 2) for e in ended)
    assert not (tmp_path / "train").exists()


def test_subcommand_for_one_process(tmp_path):
    ended = run_ranks(tmp_path, 2, ranks.command_line, "demo", seconds=20)
    lines = (ended[0].err + ended[1].err).splitlines()
    assert lines == ["fcos-fast demo: it runs in one process; start it without torchrun"]


def test_each_process_has_its_gpu(monkeypatch):
    monkeypatch.setattr(distributed, "choose_device", torch.device)
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert distributed.own_device("cuda") == torch.device("cuda:1")
    assert distributed.own_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="cuda:1 is one GPU for 4 processes"):
        distributed.own_device("cuda:1")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match="there are 2 GPUs for .* start 2 with --nproc_per_node"):
        distributed.own_device("cuda")
