"""Training: one flat loop, resumable to the bit on the same CPU."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from fcos_fast.data import Categories, DetectionDataset
from fcos_fast.data.loader import EpochBatchSampler
from fcos_fast.engine.average_precision import AveragePrecision
from fcos_fast.engine.batch_size import with_batch_size
from fcos_fast.engine.callbacks import Callback, ended_on_error
from fcos_fast.engine.config import Config
from fcos_fast.engine.diagnosis import diagnose
from fcos_fast.engine.distributed import is_main, processes
from fcos_fast.engine.files import WriteError
from fcos_fast.engine.optimizer import set_learning_rate
from fcos_fast.engine.output import RunOutput
from fcos_fast.engine.prefetch import prefetch
from fcos_fast.engine.progress import Progress, memory_in_use, readable_time
from fcos_fast.engine.resume import check_resumable, open_run, restore
from fcos_fast.engine.run import Run, how_to_continue, losses_in_words, metrics_columns
from fcos_fast.engine.schedule import learning_rate_factor
from fcos_fast.engine.splits import load_splits, with_absolute_root, with_classes_of, with_options_of_rank_0
from fcos_fast.engine.step import Tally
from fcos_fast.models import Detector


class NonFiniteLossError(FloatingPointError):
    """A loss or gradient is infinite or NaN. The message has the step and what to change."""


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C during a run; the message is the command that continues it.

    Attributes:
        folder: folder of the run, to resume from.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(f"interrupted; {how_to_continue(folder)}")
        self.folder = folder


@dataclass(frozen=True)
class TrainResult:
    """The result of a run.

    Attributes:
        folder: contains ``best.pt``, ``last.pt``, ``metrics.csv`` and ``config.yaml``.
        config: configuration with every value resolved.
        model: model with the weights of the last epoch, averaged if ``train.ema_decay`` is not 0, in evaluation mode.
        val_set: validation split; None, like the next two, for a run without one.
        detections: detections of ``model`` for each image of ``val_set``; empty on all ranks but 0.
        result: average precision of these detections.
        stopped: why the run ended before its last epoch; None if it did not.
    """

    folder: Path
    config: Config
    model: Detector
    val_set: DetectionDataset | None = None
    detections: list[dict[str, Tensor]] | None = None
    result: AveragePrecision | None = None
    stopped: str | None = None


def train(config: Config, callbacks: Sequence[Callback] = ()) -> TrainResult:
    """Train from the beginning, in a new folder ``config.train.runs/config.train.name``.

    Processes started by ``torchrun`` train together, with the options of rank 0 except ``data.root``, ``data.workers``
    and ``train.device``; rank 0 prints and writes, and calls the callbacks.

    Raises:
        ValueError: the dataset, the device or a value is invalid.
        NonFiniteLossError: a loss or a gradient is not finite.
        TrainingInterrupted: Ctrl-C.
        ProcessLostError: another process failed or was killed.
    """
    with processes(), ExitStack() as stack:
        config = with_options_of_rank_0(config)
        output = stack.enter_context(RunOutput(config.train.output))
        config = with_absolute_root(config)
        train_set, val_set = load_splits(config)
        config = with_classes_of(train_set, config)
        config = with_batch_size(config, train_set)
        run = Run(config, train_set, val_set, callbacks=callbacks, output=output)
        run.create_folder(stack)
        return _train(run)


def resume(
    path: str | Path,
    revise: Callable[[Config], Config] | None = None,
    callbacks: Sequence[Callback] = (),
) -> TrainResult:
    """Continue the run in a folder from the end of its last finished epoch.

    On the same CPU, torch and number of processes, the result has the same bits as that of a run that was never
    interrupted. Another number of processes changes rounding, and the batch of batch norms, which is a process's share.
    A finished run is evaluated again, or trains longer if ``revise`` gives it more epochs; the learning rate then
    follows the schedule of the longer run.

    Args:
        path: the folder, or ``last.pt`` in it. Only rank 0 reads it.
        revise: returns the configuration to continue with, given that of the run, for example
            ``lambda run: replace(run, train=replace(run.train, epochs=100))``. Only fields that do not change the
            result can change: the place of the dataset, the length of the run, device, workers, what is recorded.
        callbacks: called by rank 0.

    Raises:
        FileNotFoundError: there is no such run.
        ValueError: another field or the training split changed.
        RunInUseError: another process is training in the folder.
    """
    with processes(), ExitStack() as stack:
        folder, saved, before = open_run(Path(path), stack)
        config = before if revise is None else revise(before)
        config = replace(config, model=replace(config.model, num_classes=before.model.num_classes))
        config = with_absolute_root(with_options_of_rank_0(config))
        check_resumable(before, config)
        output = stack.enter_context(RunOutput(config.train.output))
        train_set, val_set = load_splits(config, Categories.from_dict(saved["categories"]))
        run = Run(config, train_set, val_set, is_new=False, callbacks=callbacks, output=output)
        restore(run, saved, folder)
        return _train(run)


def _train(run: Run) -> TrainResult:
    with ended_on_error(run.callbacks, run):
        outcome = _train_epochs(run)
    if is_main():
        run.callbacks.on_end(run, outcome)
    return outcome


def _train_epochs(run: Run) -> TrainResult:
    state, row, result, detections = run.state, None, None, None
    try:
        run.open()
        while state.epoch < run.total_epochs and not run.stops():
            start = time.perf_counter()
            row = train_epoch(run)
            state.epoch += 1
            result = detections = None
            if run.evaluates_now():
                begin = time.perf_counter()
                result, detections = run.evaluate()
                run.clock.evaluation = time.perf_counter() - begin
                row |= metrics_columns(result)
            row["seconds"] = time.perf_counter() - start
            run.record(row)
        if run.stops() and is_main():
            print(f"stopped after epoch {state.epoch}: {run.stop_reason}", flush=True)
        if result is None and run.val_set is not None:
            result, detections = run.evaluate()
            if row is not None:  # stopped after an epoch without evaluation, not resumed after its end
                run.save(row | metrics_columns(result))
    except KeyboardInterrupt:
        raise TrainingInterrupted(run.folder) from None
    except WriteError as error:
        advice = f"; {how_to_continue(run.folder)}" if run.folder.is_dir() else ""
        raise WriteError(f"{error}{advice}") from error
    model = state.averaged.eval()
    return TrainResult(run.folder, run.config, model, run.val_set, detections, result, run.stop_reason)


def train_epoch(run: Run) -> dict[str, float]:
    """Train for one pass over the training split, or its rest; ``train.steps`` or a callback can end the pass early.

    Returns:
        Metrics of the epoch: ``epoch``, ``lr``, ``images_per_second``, and averaged over steps and processes ``loss``,
        ``loss_<name>`` of each loss and ``loss_<name>_floor`` of one that cannot reach 0.

    Raises:
        NonFiniteLossError: a loss or gradient is infinite or NaN.
    """
    state, step, options = run.state, run.train_step, run.config.train
    steps_per_epoch = len(run.loader)
    first = state.step - state.epoch * steps_per_epoch  # batches of this epoch that were trained on before
    steps = min(steps_per_epoch, run.total_steps - state.epoch * steps_per_epoch) - first
    # Reading the tally waits for the device; a CPU has nothing to wait for.
    read_every = 1 if step.device.type == "cpu" else 20
    title = f"epoch {state.epoch + 1}/{run.total_epochs}"
    row: dict[str, float] = {}
    done, before = 0, None

    state.model.train()
    step.begin_epoch()
    assert isinstance(run.loader.batch_sampler, EpochBatchSampler)
    run.loader.batch_sampler.set_epoch(state.epoch)
    start = time.perf_counter()
    run.clock.begin()
    with Progress(steps, title, images=options.images_per_step) as progress:
        batches = islice(prefetch(run.loader, step.device), first, first + steps)
        for i, (images, targets) in enumerate(batches, start=1):
            factor = learning_rate_factor(run.schedule, state.step, run.total_steps)
            set_learning_rate(state.optimizer, factor)
            try:
                step(images, targets)
            except ValueError as error:
                raise _explained(error) from error
            state.step += 1
            run.clock.step()
            if i % read_every == 0 or i == steps:
                tally = step.tally()
                row = loss_columns(step.losses, tally, i)
                if tally.skipped:
                    batch = first + tally.finite
                    raise non_finite_error(row, batch + 1, title, run.config, diagnose(run, batch))
                latest = loss_columns(step.losses, tally if before is None else tally - before, i - done)
                lr = float(state.optimizer.param_groups[0]["lr"])
                run.report_step({"step": state.step, "epoch": state.epoch + 1, "lr": lr, **latest})
                done, before = i, tally
            progress.update(_shown(row, step.device), f"run left {readable_time(run.seconds_left())}")
            if done == i and run.stops():
                break
    seconds = max(time.perf_counter() - start, 1e-9)  # the clock can stand still
    return {
        "epoch": state.epoch + 1,
        "lr": float(state.optimizer.param_groups[0]["lr"]),
        **row,
        "images_per_second": done * options.images_per_step / seconds,
    }


def loss_columns(names: Sequence[str], tally: Tally, steps: int) -> dict[str, float]:
    """The means of a tally of this many steps: ``loss``, ``loss_<name>``, and ``loss_<name>_floor`` above 0."""
    columns = {"loss": sum(tally.sums) / steps}
    for name, loss, floor in zip(names, tally.sums, tally.floors, strict=True):
        columns[f"loss_{name}"] = loss / steps
        if floor:
            columns[f"loss_{name}_floor"] = floor / steps
    return columns


def _shown(row: dict[str, float], device: torch.device) -> dict[str, float | str]:
    """What the live line shows of a row."""
    loss = {"loss": row["loss"]} if row else {}
    return {"memory": memory_in_use(device), **loss, **losses_in_words(row)}


def non_finite_error(
    row: dict[str, float], step: int, title: str, config: Config, cause: str = ""
) -> NonFiniteLossError:
    """The error for a skipped step.

    Args:
        row: columns of the losses.
        step: number of the step in its epoch, counted from 1.
        title: the epoch, in words.
        config: configuration of the run.
        cause: what is not finite, in words.
    """
    what = "gradient" if math.isfinite(row["loss"]) else "loss"
    values = ", ".join(f"{name} {loss}" for name, loss in losses_in_words(row).items())
    precision = "" if config.train.precision == "float32" else ", or use train.precision float32"
    return NonFiniteLossError(
        f"{title}, step {step}: the {what} is not finite ({values}){cause}; lower optimizer.lr "
        f"({config.optimizer.lr:g}) or optimizer.clip_norm ({config.optimizer.clip_norm:g}){precision}"
    )


def _explained(error: ValueError) -> ValueError:
    """torch's error about a batch norm with the remedy; any other error unchanged."""
    if "more than 1 value per channel" not in str(error):
        return error
    return ValueError(
        f"a batch norm has one value per channel and so no variance ({error}); use larger images (model.min_size, "
        "augment.size), a larger train.batch_size, or model.norm frozen or group"
    )
