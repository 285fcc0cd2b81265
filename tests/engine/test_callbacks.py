"""Callbacks: what they are told, and that they and patience stop a run, which resumes to the bit."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

import fcos_fast
from fcos_fast.engine import train as train_module
from fcos_fast.engine.callbacks import Callback
from fcos_fast.engine.checkpoint import load_checkpoint
from fcos_fast.engine.evaluate import evaluate
from fcos_fast.engine.run import Run
from fcos_fast.engine.run_folder import read_metrics
from fcos_fast.engine.schedule import ScheduleConfig
from fcos_fast.engine.train import TrainingInterrupted, resume, train
from tests.engine.test_train import assert_same_run


class Recorder(Callback):
    def __init__(self, stop_at=None):
        self.stop_at, self.calls = stop_at, []

    def on_start(self, run):
        self.calls.append(("start", run.folder.name))

    def on_step(self, run, row):
        self.calls.append(("step", row))
        if row["step"] == self.stop_at:
            run.stop("enough")

    def on_epoch_end(self, run, row):
        self.calls.append(("epoch", row))

    def on_end(self, run, result):
        self.calls.append(("end", result))


@pytest.fixture
def small(tiny):
    """Three epochs of two steps; the learning rate does not depend on the length of the run."""
    return replace(
        tiny,
        model=replace(tiny.model, backbone="mobilenet_v2"),
        schedule=ScheduleConfig(kind="constant", warmup_steps=0),
        train=replace(tiny.train, epochs=3, batch_size=4),
    )


def test_callbacks_see_the_run(small):
    recorder = Recorder()
    result = train(replace(small, train=replace(small.train, epochs=1)), [recorder])
    kinds = [kind for kind, _ in recorder.calls]
    assert kinds == ["start", "step", "step", "epoch", "end"]
    values = dict(recorder.calls)
    assert values["start"] == "train"
    assert values["end"] is result
    assert result.stopped is None
    steps = [row for kind, row in recorder.calls if kind == "step"]
    (row,) = read_metrics(result.folder / "metrics.csv")
    assert [step["step"] for step in steps] == [1, 2]
    for name in row:
        if name.startswith("loss"):  # of each step alone; the row has their mean
            assert sum(step[name] for step in steps) / 2 == pytest.approx(row[name], rel=1e-4), name


def test_a_callback_stops_within_an_epoch_and_the_run_resumes_to_the_bit(small, capsys):
    whole = train(small)
    recorder = Recorder(stop_at=3)
    stopped = train(replace(small, train=replace(small.train, name="stopped")), [recorder])
    assert stopped.stopped == "enough"
    assert stopped.result is not None  # evaluated
    assert "stopped after epoch 2: enough" in capsys.readouterr().out
    assert load_checkpoint(stopped.folder / "last.pt")["step"] == 3
    assert [row["epoch"] for row in read_metrics(stopped.folder / "metrics.csv")] == [1, 2]
    # the second epoch was evaluated in its middle too, so best.pt and metrics.csv can differ
    again = load_checkpoint(resume(stopped.folder).folder / "last.pt")
    for name, value in load_checkpoint(whole.folder / "last.pt")["model"].items():
        assert again["model"][name].equal(value), name


class StopAfter(Recorder):
    """Stops after an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch = epoch

    def on_epoch_end(self, run, row):
        super().on_epoch_end(run, row)
        if row["epoch"] == self.epoch:
            run.stop("enough")


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_stop_after_an_epoch_without_evaluation_evaluates_it(small, epoch):
    """Every second of five is evaluated. The result is that of the weights in best.pt and last.pt."""
    recorder = StopAfter(epoch)
    options = replace(small.train, epochs=5, evaluate_every=2, precision="float32")
    result = train(replace(small, model=replace(small.model, prior=0.5), train=options), [recorder])
    rows = read_metrics(result.folder / "metrics.csv")
    assert [row["epoch"] for row in rows] == list(range(1, epoch + 1))
    assert ["ap" in row for row in rows] == [e % 2 == 0 or e == epoch for e in range(1, epoch + 1)]
    assert len([kind for kind, _ in recorder.calls if kind == "epoch"]) == epoch
    assert load_checkpoint(result.folder / "best.pt")["epoch"] == epoch
    _, expected = evaluate(result.model, result.val_set, batch_size=4)
    for found, own in zip(result.detections, expected, strict=True):
        assert found["boxes"].equal(own["boxes"])
        assert len(own["boxes"]) > 0


def test_an_error_in_a_callback_ends_the_run(small):
    class Broken(Recorder):
        def on_step(self, run, row):
            raise RuntimeError("no such column")

    broken = Broken()
    with pytest.raises(RuntimeError, match="no such column"):
        train(small, [broken])
    assert broken.calls[-1] == ("end", None)


def test_ctrl_c_before_the_first_step_names_the_run(small):
    class Interrupted(Recorder):
        def on_start(self, run):
            raise KeyboardInterrupt

    with pytest.raises(TrainingInterrupted, match=r"continue with: fcos-fast train --resume .*train"):
        train(small, [Interrupted()])


def test_a_stop_before_the_first_step(small, capsys):
    class Stop(Recorder):
        def on_start(self, run):
            run.stop("the queue is empty")

    result = fcos_fast.train(config=small, callbacks=[Stop()])
    assert result.stopped == "the queue is empty"
    assert f"--checkpoint {result.folder / 'last.pt'} " in capsys.readouterr().out


@pytest.mark.parametrize(("given", "message"), [(Recorder, "the class Recorder"), (print, "of type builtin")])
def test_what_is_no_callback_is_rejected(small, given, message):
    with pytest.raises(TypeError, match=rf"callbacks\[0\] is {message}.*expected an instance of a subclass"):
        train(small, [given])


@pytest.fixture
def scores(monkeypatch):
    """Evaluations have these results, one after the other."""
    given = []

    def evaluate(run):
        ap = given.pop(0)
        summary = {"ap": ap, "ap50": ap}
        return SimpleNamespace(summary=lambda: summary, per_class={}), []

    monkeypatch.setattr(Run, "evaluate", evaluate)
    return given


@pytest.fixture
def patient(small):
    """Up to eight epochs of one step."""
    return replace(small, train=replace(small.train, epochs=8, batch_size=8, patience=2))


def test_patience_ends_with_the_reason(patient, scores, capsys):
    """An AP of 0 does not count, the same AP is not better, and neither resets the count."""
    scores[:] = [0.0, 0.0, 0.0, 0.1, 0.3, 0.2, 0.3]
    result = train(patient)
    assert scores == []
    assert result.stopped.startswith("no better AP than 0.300 in 2 evaluations (train.patience)")
    assert "stopped after epoch 7: no better AP than 0.300" in capsys.readouterr().out
    assert load_checkpoint(result.folder / "best.pt")["epoch"] == 7


def test_patience_is_resumed_to_the_bit(patient, scores, monkeypatch):
    given = [0.1, 0.3, 0.2, 0.25]
    scores[:] = given
    whole = train(patient)
    scores[:] = given
    epochs, real = iter(range(3)), train_module.train_epoch

    def interrupted(run):
        if next(epochs) == 2:
            scores[:0] = []
            raise KeyboardInterrupt
        return real(run)

    with monkeypatch.context() as patch:
        patch.setattr(train_module, "train_epoch", interrupted)
        with pytest.raises(TrainingInterrupted) as interruption:
            train(patient)
    again = resume(interruption.value.folder)
    assert again.stopped == whole.stopped
    assert_same_run(again.folder, whole.folder)

    scores[:] = [0.25]  # it stays stopped, and is evaluated once more
    assert resume(again.folder).stopped == whole.stopped
    scores[:] = [0.1] * 4
    longer = resume(again.folder, lambda run: replace(run, train=replace(run.train, patience=None)))
    assert longer.stopped is None
    assert len(read_metrics(longer.folder / "metrics.csv")) == 8


def test_patience_needs_a_validation_split(patient):
    with pytest.raises(ValueError, match=r"train.patience=2 needs a validation split"):
        train(replace(patient, data=replace(patient.data, val="")))
