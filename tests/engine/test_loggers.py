"""The loggers of other projects, which write into local folders here."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from fcos_fast.engine.loggers import MLflow, build_loggers
from fcos_fast.engine.run_folder import read_metrics
from fcos_fast.engine.train import resume, train


@pytest.fixture
def short(tiny):
    """One epoch of two steps."""
    return replace(
        tiny,
        model=replace(tiny.model, backbone="mobilenet_v2"),
        train=replace(tiny.train, epochs=1, batch_size=4),
    )


def continued(config, name):
    """A run of one epoch and its continuation by another; the rows of its table."""
    folder = train(replace(config, train=replace(config.train, loggers=(name,)))).folder
    resume(folder, lambda run: replace(run, train=replace(run.train, epochs=2)))
    return folder, read_metrics(folder / "metrics.csv")


def test_tensorboard(short):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, rows = continued(short, "tensorboard")
    events = EventAccumulator(str(folder)).Reload()
    for name in ("loss", "loss_bbox_ctrness_floor", "ap50"):
        found = [(e.step, e.value) for e in events.Scalars(name)]
        assert found == [
            (2, pytest.approx(rows[0][name], rel=1e-4)),
            (4, pytest.approx(rows[1][name], rel=1e-4)),
        ]
    assert events.Scalars("train/loss_classification")[0].step == 1


def test_mlflow(short, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(tmp_path / "mlruns"))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder, rows = continued(short, "mlflow")
    client = mlflow.MlflowClient()
    (experiment,) = [e for e in client.search_experiments() if e.name == "fcos_fast"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == (folder / "mlflow.id").read_text()
    assert (run.info.run_name, run.info.status) == ("train", "FINISHED")
    assert run.data.params["train.batch_size"] == "4"
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [
        (2, pytest.approx(rows[0]["loss"], rel=1e-4)),
        (4, pytest.approx(rows[1]["loss"], rel=1e-4)),
    ]


def test_mlflow_with_many_classes_of_any_name():
    logger, batches = MLflow.__new__(MLflow), []
    logger.id, logger.mlflow = "1", SimpleNamespace(entities=SimpleNamespace(Metric=lambda *m: m))
    logger.client = SimpleNamespace(log_batch=lambda _, metrics: batches.append(metrics))
    values = {f"ap_{n}": n / 1203 for n in range(1203)} | {"ap_汽车": 0.25, "ap_行人": 0.5, "ap_a:b": 0.75}
    logger.log(values, 7)
    assert [len(batch) for batch in batches] == [1000, 206]
    found = {name: value for batch in batches for name, value, _, step in batch if step == 7}
    assert list(found.values()) == list(values.values())
    assert list(found)[-1] == "ap_a_b"
    assert all(name.isascii() for name in found)


def test_wandb(short, monkeypatch):
    """Offline: what it is given, and its files in the folder of the run."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logged, finished, real = [], [], wandb.Run.log
    monkeypatch.setattr(
        wandb.Run, "log", lambda run, values, step: logged.append((step, values)) or real(run, values, step)
    )
    end = wandb.Run.finish
    monkeypatch.setattr(
        wandb.Run, "finish", lambda run, exit_code: finished.append(exit_code) or end(run, exit_code)
    )
    folder, rows = continued(short, "wandb")
    number = (folder / "wandb.id").read_text()
    files = list(folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    assert {file.stem for file in files} == {f"run-{number}"}
    assert finished == [0, 0]
    for step, row in zip((2, 4), rows, strict=True):
        (values,) = [values for s, values in logged if s == step and "loss" in values]
        assert {k: values[k] for k in row} == pytest.approx(row, rel=1e-4)
    assert {"train/loss", "train/lr"} <= logged[0][1].keys()


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_named_with_its_extra(name, monkeypatch, short):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        ModuleNotFoundError, match=rf'{name} needs {name}; pip install "fcos_fast\[loggers\]"'
    ):
        build_loggers([name])


def test_an_unknown_logger_is_rejected(short):
    with pytest.raises(ValueError, match="tensorbord.*tensorboard"):
        replace(short.train, loggers=("tensorbord",))
