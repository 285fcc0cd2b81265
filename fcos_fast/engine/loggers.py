"""Loggers of other projects as callbacks: TensorBoard, Weights & Biases, MLflow."""

from __future__ import annotations

import math
import os
import re
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcos_fast.engine.callbacks import Callback
from fcos_fast.engine.files import write_text
from fcos_fast.models.optional import import_optional
from fcos_fast.serialize import to_plain

if TYPE_CHECKING:
    from fcos_fast.engine.run import Run
    from fcos_fast.engine.train import TrainResult

PROJECT = "fcos_fast"
"""Project of W&B and experiment of MLflow, unless their environment variables name another."""


MOST_METRICS = 1000
"""MLflow rejects more at once, and a dataset can have more classes."""


class Logger(Callback):
    """Logs losses while training (``train/...``, at most once per second) and the row of each epoch.

    A subclass implements :meth:`on_start` and :meth:`log`. The step of every value is that of the optimizer.
    """

    _last = -math.inf

    def log(self, values: dict[str, float], step: int) -> None:
        """Log finite values by name."""
        raise NotImplementedError

    def on_step(self, run: Run, row: dict[str, float]) -> None:
        """Log the losses and the learning rate."""
        now = time.monotonic()
        if now - self._last >= 1:
            self._last = now
            values = {f"train/{k}": v for k, v in row.items() if k not in ("step", "epoch")}
            self.log(values, run.state.step)

    def on_epoch_end(self, run: Run, row: dict[str, float]) -> None:
        """Log the row of the epoch."""
        self.log({k: v for k, v in row.items() if math.isfinite(v)}, run.state.step)


class TensorBoard(Logger):
    """Writes event files into the folder of the run."""

    def __init__(self) -> None:
        self.tensorboard = import_optional(
            "torch.utils.tensorboard", "train.loggers tensorboard needs", "train"
        )

    def on_start(self, run: Run) -> None:
        """Open the event file; values after the step of a resumed run are dropped."""
        self.writer = self.tensorboard.SummaryWriter(str(run.folder), purge_step=run.state.step + 1)

    def log(self, values: dict[str, float], step: int) -> None:
        """As :meth:`Logger.log`."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def on_end(self, run: Run, result: TrainResult | None) -> None:
        """Close the file."""
        if hasattr(self, "writer"):
            self.writer.close()


class WandB(Logger):
    """Logs to Weights & Biases. Its environment variables decide where to: ``WANDB_PROJECT``, ``WANDB_MODE``, ..."""

    def __init__(self) -> None:
        self.wandb = import_optional("wandb", "train.loggers wandb needs", "loggers")

    def on_start(self, run: Run) -> None:
        """Start a run of W&B, or continue that of the folder."""
        self.run = self.wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            name=run.folder.name,
            id=_kept(run.folder / "wandb.id", lambda: secrets.token_hex(4)),
            resume="allow",
            dir=str(run.folder),
            config=to_plain(run.config),
        )

    def log(self, values: dict[str, float], step: int) -> None:
        """As :meth:`Logger.log`."""
        self.run.log(values, step=step)

    def on_end(self, run: Run, result: TrainResult | None) -> None:
        """Finish the run of W&B, as failed without a ``result``."""
        if hasattr(self, "run"):
            self.run.finish(exit_code=int(result is None))


class MLflow(Logger):
    """Logs to MLflow. Its variables decide where to: ``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME``."""

    def __init__(self) -> None:
        self.mlflow = import_optional("mlflow", "train.loggers mlflow needs", "loggers")

    def on_start(self, run: Run) -> None:
        """Start a run of MLflow, or continue that of the folder."""
        self.client = self.mlflow.MlflowClient()
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        is_new = not (run.folder / "mlflow.id").exists()

        def create() -> str:
            experiment = self.client.get_experiment_by_name(name)
            number = self.client.create_experiment(name) if experiment is None else experiment.experiment_id
            return str(self.client.create_run(number, run_name=run.folder.name).info.run_id)

        self.id = _kept(run.folder / "mlflow.id", create)
        self.client.update_run(self.id, status="RUNNING")
        if is_new:
            for name, value in _flat(to_plain(run.config)).items():
                self.client.log_param(self.id, name, str(value)[:500])

    def log(self, values: dict[str, float], step: int) -> None:
        """As :meth:`Logger.log`."""
        now = int(time.time() * 1000)
        metric = self.mlflow.entities.Metric
        metrics = [metric(_ascii(name), value, now, step) for name, value in values.items()]
        for start in range(0, len(metrics), MOST_METRICS):
            self.client.log_batch(self.id, metrics=metrics[start : start + MOST_METRICS])

    def on_end(self, run: Run, result: TrainResult | None) -> None:
        """Finish the run of MLflow, as failed without a ``result``."""
        if hasattr(self, "id"):
            self.client.set_terminated(self.id, "FAILED" if result is None else "FINISHED")


LOGGERS: dict[str, Callable[[], Logger]] = {"tensorboard": TensorBoard, "wandb": WandB, "mlflow": MLflow}


def build_loggers(names: Sequence[str]) -> list[Logger]:
    """The loggers that ``train.loggers`` names.

    Raises:
        ModuleNotFoundError: its package is not installed; the message has the command that installs it.
    """
    return [LOGGERS[name]() for name in dict.fromkeys(names)]


def _kept(path: Path, make: Callable[[], str]) -> str:
    """The id in a file of the run's folder, which a resumed run continues; made if there is none."""
    if not path.exists():
        write_text(path, make())
    return path.read_text(encoding="utf-8")


def _ascii(name: str) -> str:
    """A name that MLflow accepts; names of classes that differ in letters of other alphabets stay different."""
    return re.sub(r"[^\w\-. /]", lambda c: "_" if c[0].isascii() else f"u{ord(c[0]):x}", name, flags=re.ASCII)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
