"""One training run: its parts, and what it prints and writes."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn

from fcos_fast.data import Categories, DetectionDataset, train_loader
from fcos_fast.data.loader import close_mosaic
from fcos_fast.engine.average_precision import AveragePrecision
from fcos_fast.engine.callbacks import Callback, Callbacks
from fcos_fast.engine.checkpoint import describe_model, save_checkpoint
from fcos_fast.engine.config import Config, save_config
from fcos_fast.engine.distributed import (
    advise,
    broadcast,
    broadcast_model,
    is_main,
    own_device,
    parallel,
    rank,
    world_size,
)
from fcos_fast.engine.ema import ExponentialMovingAverage
from fcos_fast.engine.evaluate import evaluate
from fcos_fast.engine.initial_weights import load_initial_weights
from fcos_fast.engine.loggers import build_loggers
from fcos_fast.engine.optimizer import build_optimizer
from fcos_fast.engine.output import JsonEvents, RunOutput
from fcos_fast.engine.progress import RunClock
from fcos_fast.engine.random_state import seed_everything
from fcos_fast.engine.restart import record_agents
from fcos_fast.engine.run_folder import MetricsTable, locked, new_run_folder
from fcos_fast.engine.splits import fingerprint
from fcos_fast.engine.state import TrainState
from fcos_fast.engine.step import TrainStep
from fcos_fast.models import BatchPacker, build_detector
from fcos_fast.models.winograd import use_winograd
from fcos_fast.precision import choose_precision
from fcos_fast.serialize import to_plain
from fcos_fast.text import printable

EVALUATION_BATCH = 8
"""Maximum number of images that are evaluated together. ``train.batch_size`` counts the images of all processes, which
may be too many for one."""


class Run:
    """The parts of a training run, built from its configuration.

    After the constructor call :meth:`create_folder` for a new run or :func:`fcos_fast.engine.resume.restore` for a
    resumed one, then :meth:`open`. Nothing is written before.

    Args:
        config: configuration of the run; ``model.num_classes`` is that of ``train_set``.
        train_set: training split.
        val_set: validation split; None disables evaluation.
        is_new: load ``train.weights``; a resumed run has its own weights.
        callbacks: called by rank 0, after the loggers of the configuration.
        output: writes the log of the run; None: nothing is logged.

    Attributes:
        loader: batches of the training split.
        schedule: learning rate schedule, in steps.
        state: model, optimizer, moving average and position.
        about: entries of every checkpoint besides the state.
        folder: folder of the run.
        train_step: optimizer step.
        callbacks: those of the user and the loggers.
        clock: estimates the time left.
        stop_reason: why the run ends before its last epoch; None if it does not.
    """

    folder: Path
    train_step: TrainStep

    def __init__(
        self,
        config: Config,
        train_set: DetectionDataset,
        val_set: DetectionDataset | None,
        is_new: bool = True,
        callbacks: Sequence[Callback] = (),
        output: RunOutput | None = None,
    ) -> None:
        options = config.train
        _check_options(config, val_set)
        self.output = output or RunOutput()
        self.callbacks = Callbacks(callbacks)
        own = [*build_loggers(options.loggers), JsonEvents(self.output)]
        self.callbacks.callbacks = [*own, *self.callbacks.callbacks] if is_main() else []
        self.stop_reason: str | None = None
        self.config, self.train_set, self.val_set = config, train_set, val_set
        self.device = own_device(options.device)
        self.dtype, self.precision_reason = choose_precision(options.precision, self.device)
        self.loader = train_loader(
            train_set,
            batch_size=options.images_per_step,
            augment=config.augment,
            seed=options.seed,
            workers=config.data.workers,
            packer=BatchPacker(config.model),
            group_by_aspect_ratio=config.data.group_by_aspect_ratio,
            rank=rank(),
            world_size=world_size(),
            device=self.device,
            repeat_threshold=config.data.repeat_threshold,
        )
        self.total_steps = options.total_steps(len(self.loader))
        self.total_epochs = options.total_epochs(len(self.loader))
        close_mosaic(self.loader, self.total_epochs)
        self.schedule = config.schedule.in_steps(self.total_steps, len(self.loader))
        self.state = initial_state(config, train_set.categories, self.device, is_new)
        # without gradients and optimizer an image takes about a third of the time
        self.clock = RunClock(0 if val_set is None else len(val_set) / options.images_per_step / 3)
        self.about = {
            "config": to_plain(config),
            "train_split": fingerprint(train_set),
            **describe_model(self.state.model, train_set.categories),
        }

    def create_folder(self, stack: ExitStack) -> None:
        """Create the folder of a new run, locked until ``stack`` closes. From now on the run can be resumed."""
        folder = None
        if is_main():
            folder = new_run_folder(self.config.train.runs, self.config.train.name)
            stack.enter_context(locked(folder))
            self.save_start(folder)
        self.folder = broadcast(folder)
        record_agents(self.folder)

    def save_start(self, folder: Path) -> None:
        """Write what resuming needs, even after an interruption in the first epoch."""
        save_config(self.config, folder / "config.yaml")
        save_checkpoint(folder / "last.pt", self.about | self.state.state_dict())

    def open(self) -> None:
        """Build the optimizer step and the metrics table, and print dataset, model and folder."""
        options = self.config.train
        self.output.open(self.folder)
        advise(how_to_continue(self.folder))
        if options.compile:
            self.state.model.compile_losses()
        self.train_step = TrainStep(
            parallel(self.state.model),
            self.state.optimizer,
            self.state.ema,
            self.dtype,
            self.config.optimizer.clip_norm,
            options.cuda_graphs,
            options.accumulate,
        )
        self._table = MetricsTable(self.folder / "metrics.csv", self.state.epoch)
        self._check_patience()
        if is_main():
            self._print_start()
            self.callbacks.on_start(self)

    def stop(self, reason: str) -> None:
        """End the run after the current step, with an evaluation and a checkpoint; for callbacks."""
        self.stop_reason = self.stop_reason or reason

    def stops(self) -> bool:
        """Whether the run ends now, because rank 0 or train.patience says so."""
        self.stop_reason = broadcast(self.stop_reason)
        return self.stop_reason is not None

    def report_step(self, row: dict[str, float]) -> None:
        """Call the callbacks with the losses that were just read."""
        if is_main():
            self.callbacks.on_step(self, row)

    def seconds_left(self) -> float:
        """Expected time until the end of the run, evaluations included; NaN if it is not known yet."""
        state, every = self.state, self.config.train.evaluate_every
        epochs = range(state.epoch + 1, self.total_epochs + 1)
        evaluations = sum(e % every == 0 or e == self.total_epochs for e in epochs) if self.val_set else 0
        return self.clock.left(self.total_steps - state.step, evaluations)

    def evaluates_now(self) -> bool:
        """Whether the epoch that has just ended is evaluated."""
        ends = self.state.epoch == self.total_epochs or self.stop_reason is not None
        return self.val_set is not None and (ends or self.state.epoch % self.config.train.evaluate_every == 0)

    def evaluate(self) -> tuple[AveragePrecision, list[dict[str, Tensor]]]:
        """Average precision and detections of the averaged model on the validation split."""
        assert self.val_set is not None
        model = self.state.averaged
        broadcast_model(model)
        batch_size = min(self.config.train.images_per_step, EVALUATION_BATCH)
        return evaluate(model, self.val_set, self.dtype, batch_size, self.config.data.workers)

    def record(self, row: dict[str, float]) -> None:
        """Write the metrics and checkpoints of the epoch that has just ended, and tell of it."""
        self.save(row)
        if not is_main():
            return
        if self.config.train.output != "json":  # which has the row as an event
            print(_epoch_line(row, self.total_epochs), flush=True)
        self.callbacks.on_epoch_end(self, row)

    def save(self, row: dict[str, float]) -> None:
        """Write the metrics and checkpoints of the epoch that has just ended, in place of those without evaluation."""
        score = self._score(row)
        is_best = score >= self.state.best
        if "ap" in row:  # patience begins with the first detection that is right
            self.state.stale = 0 if score > self.state.best or score == 0 else self.state.stale + 1
        self.state.best = max(score, self.state.best)
        self._check_patience()
        if not is_main():
            return
        # last.pt comes last: a run that is killed in between repeats the epoch and writes the same again
        self._table.append(row)
        if is_best:
            best = {"model": self.state.averaged.state_dict(), "epoch": self.state.epoch, "metrics": row}
            save_checkpoint(self.folder / "best.pt", self.about | best)
        save_checkpoint(self.folder / "last.pt", self.about | self.state.state_dict())

    def _check_patience(self) -> None:
        patience = self.config.train.patience
        if patience and self.state.stale >= patience and self.state.epoch < self.total_epochs:
            self.stop(
                f"no better AP than {self.state.best:.3f} in {self.state.stale} evaluations (train.patience); to train "
                "longer, resume with a larger --train.patience, or null"
            )

    def _score(self, row: dict[str, float]) -> float:
        if self.val_set is None:
            return self.state.epoch  # the latest is the best
        if "ap" not in row:
            return -1.0
        return 0.0 if math.isnan(row["ap"]) else row["ap"]

    def _print_start(self) -> None:
        for dataset in (self.train_set, self.val_set):
            if dataset is not None and dataset.report is not None:
                print(printable(str(dataset.report)))
        print(self.train_set.categories)
        device = f"{self.device}, {self.dtype} ({self.precision_reason})".replace("torch.", "")
        print(
            f"{self.state.model.title}; {device}; everything goes to {printable(str(self.folder))}",
            flush=True,
        )
        if self.state.epoch >= self.total_epochs:
            again = "" if self.val_set is None else " and is evaluated again"
            steps = "" if self.config.train.steps is None else ", with --train.steps null"
            print(
                f"the run has finished its {self.total_epochs} epochs{again}; to train longer give "
                f"--train.epochs {self.total_epochs + 1} or more{steps}",
                flush=True,
            )


def _check_options(config: Config, val_set: DetectionDataset | None) -> None:
    """Raise a ValueError for options that do not go together."""
    options = config.train
    if options.patience and val_set is None:
        raise ValueError(
            f"train.patience={options.patience} needs a validation split; give --data.val, or omit train.patience"
        )
    if options.accumulate == 1:
        return
    if getattr(config.model, "normalizer", None) == "moving_average":
        raise ValueError(
            "train.accumulate needs model.normalizer weights, positives or image: every part of a batch would "
            "update the moving_average"
        )
    if options.images_per_step % (unit := world_size() * options.accumulate):
        count = f", in each of {world_size()} processes" if world_size() > 1 else ""
        raise ValueError(
            f"train.batch_size={options.batch_size} cannot be split into train.accumulate={options.accumulate} equal "
            f"parts{count}; use a multiple of {unit}"
        )


def initial_state(config: Config, categories: Categories, device: torch.device, is_new: bool) -> TrainState:
    """Model, optimizer and moving average before the first step, with the initial weights of a new run."""
    options = config.train
    seed_everything(options.seed)
    model = build_detector(config.model)
    if options.sync_batch_norm and world_size() > 1:
        if device.type != "cuda":
            raise ValueError(f"train.sync_batch_norm needs GPUs, but the device is {device}; omit it")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if is_new and is_main():  # of several processes only one downloads
        with torch.random.fork_rng(devices=[]):
            load_initial_weights(model, options.weights or "none", categories)
    model.to(device).to(
        memory_format=torch.channels_last if options.channels_last else torch.contiguous_format
    )
    if is_new:
        broadcast_model(model)
    if options.winograd:
        use_winograd(model)
    ema = ExponentialMovingAverage(model, options.ema_decay) if options.ema_decay else None
    return TrainState(model, build_optimizer(model, config.optimizer), ema)


def how_to_continue(folder: Path) -> str:
    """The command that resumes an interrupted run, for messages."""
    return f"continue with: fcos-fast train --resume {shlex.quote(str(folder))}"


def metrics_columns(result: AveragePrecision) -> dict[str, float]:
    """Metrics by column name. The AP of a class named like a metric (``small``) is ``ap_small (class)``."""
    summary = result.summary()
    columns = {f"ap_{printable(name)}": ap for name, ap in result.per_class.items()}
    return summary | {f"{name} (class)" if name in summary else name: ap for name, ap in columns.items()}


def losses_in_words(row: dict[str, float]) -> dict[str, str]:
    """The losses of a row by name, with their lower bounds: ``0.610 (floor 0.580)``."""
    words = {}
    for column in row:
        if column.startswith("loss_") and not column.endswith("_floor"):
            floor = f" (floor {row[f'{column}_floor']:.3f})" if f"{column}_floor" in row else ""
            words[column.removeprefix("loss_")] = f"{row[column]:.3f}{floor}"
    return words


def _epoch_line(row: dict[str, float], epochs: int) -> str:
    parts = ", ".join(f"{name} {loss}" for name, loss in losses_in_words(row).items())
    precision = f"  AP {row['ap']:.3f}  AP50 {row['ap50']:.3f}" if "ap" in row else ""
    return (
        f"epoch {row['epoch']}/{epochs}  loss {row['loss']:.3f} ({parts})  "
        f"{row['images_per_second']:.1f} images/s{precision}  {row['seconds']:.1f} s"
    )
