"""Training: one flat loop, resumable to the bit on the same CPU."""

from __future__ import annotations

import hashlib
import math
import shlex
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fcos_fast.data import Categories, DetectionDataset, train_loader
from fcos_fast.engine.average_precision import AveragePrecision
from fcos_fast.engine.checkpoint import describe_model, load_checkpoint, load_weights, save_checkpoint
from fcos_fast.engine.config import Config, TrainConfig, check_resumable, from_plain, save_config, to_plain
from fcos_fast.engine.distributed import (
    advise,
    broadcast,
    broadcast_model,
    own_device,
    parallel,
    processes,
    rank,
    world_size,
)
from fcos_fast.engine.ema import ExponentialMovingAverage
from fcos_fast.engine.evaluate import evaluate
from fcos_fast.engine.files import WriteError
from fcos_fast.engine.optimizer import build_optimizer, set_learning_rate
from fcos_fast.engine.prefetch import prefetch
from fcos_fast.engine.progress import Progress
from fcos_fast.engine.random_state import seed_everything
from fcos_fast.engine.run_folder import MetricsTable, locked, new_run_folder
from fcos_fast.engine.schedule import learning_rate_factor
from fcos_fast.engine.state import TrainState
from fcos_fast.engine.step import Tally, TrainStep
from fcos_fast.models import BatchPacker, Detector, build_detector
from fcos_fast.models.pretrained import load_pretrained
from fcos_fast.models.winograd import use_winograd
from fcos_fast.precision import choose_precision
from fcos_fast.text import printable

EVALUATION_BATCH = 8
"""Most images that are evaluated together. It does not grow with the number of processes, as ``train.batch_size``
does, whose images no single process could hold."""


class NonFiniteLossError(FloatingPointError):
    """A loss or a gradient became infinite or not a number; the message says where, and what to change."""


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C during a run; the message is the command that continues it.

    Attributes:
        folder: of the run, to resume from.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(f"interrupted; {_how_to_continue(folder)}")
        self.folder = folder


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves behind.

    Attributes:
        folder: holds ``best.pt``, ``last.pt``, ``metrics.csv`` and ``config.yaml``.
        config: with every value resolved.
        model: the weights of the last epoch, averaged where the run averages, in evaluation mode.
        val_set: the validation split; None for a run without one, and so the next two.
        detections: of ``model`` on ``val_set``, image by image; of several processes rank 0 has them, the others an
            empty list.
        result: their average precision.
    """

    folder: Path
    config: Config
    model: Detector
    val_set: DetectionDataset | None = None
    detections: list[dict[str, Tensor]] | None = None
    result: AveragePrecision | None = None


def train(config: Config) -> TrainResult:
    """Train from the beginning, in a new folder ``config.train.runs/config.train.name``.

    Started by ``torchrun``, the processes train together; rank 0 prints and writes.

    Raises:
        ValueError: the data set, the device or a value does not fit.
        NonFiniteLossError: a loss or a gradient is not finite.
        TrainingInterrupted: Ctrl-C.
        ProcessLostError: another of several processes failed or was killed.
    """
    with processes(), ExitStack() as stack:
        config = _with_absolute_root(config)
        train_set, val_set = load_splits(config)
        config = replace(config, model=replace(config.model, num_classes=len(train_set.categories)))
        return _run(config, train_set, val_set, stack)


def resume(path: str | Path, revise: Callable[[Config], Config] | None = None) -> TrainResult:
    """Continue the run of a folder, or of its ``last.pt``, from the end of its last finished epoch.

    On the same CPU, torch and number of processes, the result has the same bits as that of a run that was never
    interrupted. With another number of processes it differs by rounding, but for batch norms, whose batch is a
    process's share. A run that has finished is evaluated again, or goes on where ``revise`` gives it more epochs; the
    learning rate then follows the schedule of the longer run.

    Args:
        path: the folder, or ``last.pt`` in it.
        revise: from the configuration of the run makes the one to continue with, as
            ``lambda run: replace(run, train=replace(run.train, epochs=100))``. The fields that may change are those
            that do not decide what training computes: where the data set lies, the length of the run, device, workers,
            what is recorded.

    Raises:
        ValueError: what is continued would not be the same run: another field, another training split.
        RunInUseError: another process is training in the folder.
    """
    path = Path(path)
    path = path / "last.pt" if path.is_dir() else path
    with processes(), ExitStack() as stack:
        if path.is_file():  # load_checkpoint tells what else it is
            _lock(path.parent, stack)
        saved = load_checkpoint(path)
        if "optimizer" not in saved:
            raise ValueError(
                f"{path} contains only model weights and cannot be resumed; resume from {path.with_name('last.pt')}"
            )
        try:
            before = from_plain(Config, saved["config"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} holds no configuration that can be read: {error!r}") from error
        config = before if revise is None else revise(before)
        config = replace(config, model=replace(config.model, num_classes=before.model.num_classes))
        config = _with_absolute_root(config)
        check_resumable(before, config)
        train_set, val_set = load_splits(config, Categories.from_dict(saved["categories"]))
        return _run(config, train_set, val_set, stack, path.parent, saved)


def _with_absolute_root(config: Config) -> Config:
    """The configuration in which the data set is found from any working folder."""
    root = config.data.root
    if not root:
        return config
    return replace(config, data=replace(config.data, root=str(Path(root).expanduser().absolute())))


def _lock(folder: Path, stack: ExitStack) -> None:
    """Let no other run write into the folder as long as the ``stack`` is open; rank 0 does it for all."""
    if rank() == 0:
        stack.enter_context(locked(folder))


def load_splits(
    config: Config, categories: Categories | None = None
) -> tuple[DetectionDataset, DetectionDataset | None]:
    """The training split, and the validation split where the configuration names one."""
    data = config.data
    if not data.root:
        raise ValueError("no data set is given; name its folder with --data.root")
    if categories is None and data.classes:
        categories = Categories(data.classes)
    train_set = data.load(data.train, categories)
    report = train_set.report
    if report.boxes == report.ignored:
        raise ValueError(
            f"{report.source}: has no box to train on ({report.boxes} boxes, all of them difficult or crowds); "
            "label some or correct the flags"
        )
    return train_set, data.load(data.val, train_set.categories) if data.val else None


def _run(
    config: Config,
    train_set: DetectionDataset,
    val_set: DetectionDataset | None,
    stack: ExitStack,
    folder: Path | None = None,
    saved: dict[str, Any] | None = None,
) -> TrainResult:
    """Train in a new folder, which the ``stack`` keeps locked, or, with what is ``saved`` in it, on in ``folder``."""
    options = config.train
    device = own_device(options.device)
    dtype, reason = choose_precision(options.precision, device)
    loader = train_loader(
        train_set,
        options.batch_size,
        config.augment,
        options.seed,
        config.data.workers,
        BatchPacker(config.model),
        config.data.group_by_aspect_ratio,
        rank(),
        world_size(),
        device,
    )
    epochs = options.total_epochs(len(loader))
    config.schedule.in_steps(options.total_steps(len(loader)), len(loader))  # before anything is written
    state = _begin(config, train_set.categories, device, is_new=saved is None)
    about = {
        "config": to_plain(config),
        "train_split": _fingerprint(train_set),
        **describe_model(state.model, train_set.categories),
    }
    if saved is None:
        folder = broadcast(_new_folder(config, about | state.state_dict(), stack) if rank() == 0 else None)
    else:
        _continue(state, saved, about, len(loader), folder)
        if rank() == 0 and about["config"] != saved["config"]:
            _save_start(folder, config, about | state.state_dict())
    advise(_how_to_continue(folder))
    step = _make_step(state, config, dtype)
    table = MetricsTable(folder / "metrics.csv", state.epoch)
    board = _tensorboard(folder) if options.tensorboard and rank() == 0 else None
    if rank() == 0:
        _print_start(
            state.model, folder, train_set, val_set, f"{device}, {dtype} ({reason})".replace("torch.", "")
        )

    if state.epoch >= epochs and rank() == 0:
        print(
            f"the run has finished its {epochs} epochs"
            + ("" if val_set is None else " and is evaluated again")
            + f"; more: --train.epochs {epochs + 1} or above"
            + ("" if options.steps is None else ", with --train.steps null"),
            flush=True,
        )
    result, detections = None, None
    try:
        while state.epoch < epochs:
            start = time.perf_counter()
            steps_before = state.step
            losses = train_epoch(state, step, loader, config)
            seconds = max(time.perf_counter() - start, 1e-9)  # a clock may stand still
            state.epoch += 1
            row = {
                "epoch": state.epoch,
                "lr": float(state.optimizer.param_groups[0]["lr"]),
                **losses,
                "images_per_second": (state.step - steps_before) * options.batch_size / seconds,
            }
            score = state.epoch if val_set is None else -1.0  # without evaluation the latest are the best
            if val_set is not None and (state.epoch % options.evaluate_every == 0 or state.epoch == epochs):
                result, detections = _evaluate(state, val_set, config, dtype)
                row |= _columns(result)
                score = 0.0 if math.isnan(result.ap) else result.ap
            row["seconds"] = time.perf_counter() - start

            is_best = score >= state.best
            state.best = max(score, state.best)
            if rank() != 0:
                continue
            # last.pt comes last: a run that is killed in between repeats the epoch and writes the same again
            table.append(row)
            if is_best:
                best = {"model": state.averaged.state_dict(), "epoch": state.epoch, "metrics": row}
                save_checkpoint(folder / "best.pt", about | best)
            save_checkpoint(folder / "last.pt", about | state.state_dict())
            _print_epoch(row, epochs)
            if board is not None:
                for name, value in row.items():
                    board.add_scalar(name, value, state.epoch)
                board.flush()
    except KeyboardInterrupt:
        raise TrainingInterrupted(folder) from None
    except WriteError as error:
        raise WriteError(f"{error}; {_how_to_continue(folder)}" if folder.is_dir() else str(error)) from error

    if result is None and val_set is not None:  # resumed after its end
        result, detections = _evaluate(state, val_set, config, dtype)
    return TrainResult(folder, config, state.averaged.eval(), val_set, detections, result)


def _new_folder(config: Config, checkpoint: dict[str, Any], stack: ExitStack) -> Path:
    """The folder of a run that begins, which can be resumed from here on."""
    folder = new_run_folder(config.train.runs, config.train.name)
    _lock(folder, stack)
    _save_start(folder, config, checkpoint)
    return folder


def _save_start(folder: Path, config: Config, checkpoint: dict[str, Any]) -> None:
    """What resuming needs from now on, be it interrupted in its first epoch."""
    save_config(config, folder / "config.yaml")
    save_checkpoint(folder / "last.pt", checkpoint)


def _continue(
    state: TrainState, saved: dict[str, Any], about: dict[str, Any], steps_per_epoch: int, folder: Path
) -> None:
    """Bring ``state`` where the ``saved`` run stood.

    Raises:
        ValueError: the training split is another, the checkpoint does not fit, or the run is past its new end.
    """
    now, then = about["train_split"], saved.get("train_split")
    root, options = about["config"]["data"]["root"], from_plain(TrainConfig, about["config"]["train"])
    if then is not None and now != then:
        raise ValueError(
            f"the training split in {root} is not the one that the run in {folder} began with: {now['images']} images "
            f"with {now['boxes']} boxes now, {then['images']} with {then['boxes']} then, or other sizes, boxes or "
            "labels; give the same data with --data.root, or start a new run with --train.weights"
        )
    try:
        state.load_state_dict(saved)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'last.pt'} does not fit its own configuration: {error}") from error
    total = options.total_steps(steps_per_epoch)
    if state.step is None:
        before = from_plain(TrainConfig, saved["config"]["train"]).total_steps(steps_per_epoch)
        state.step = min(state.epoch * steps_per_epoch, before)
    if state.step > total:
        raise ValueError(
            f"the run in {folder} has taken {state.step} steps ({state.epoch} epochs), more than the {total} asked "
            f"for; give --train.epochs {state.epoch} or more"
        )
    if state.step < total:
        state.epoch = state.step // steps_per_epoch  # its last epoch may have ended early, and goes on


def _fingerprint(dataset: DetectionDataset) -> dict[str, Any]:
    """What a run is trained on, whatever folder it lies in: numbers of images and boxes, and a hash of them all."""
    records = dataset.records
    arrays = [
        np.array([record.size for record in records]),
        np.array([len(record.boxes) for record in records]),
    ]
    arrays += [
        np.concatenate([getattr(record, name) for record in records])
        for name in ("boxes", "labels", "ignore")
    ]
    hasher = hashlib.blake2b(digest_size=16)
    for array in arrays:
        hasher.update(np.ascontiguousarray(array))
    return {"images": len(records), "boxes": len(arrays[2]), "digest": hasher.hexdigest()}


def _how_to_continue(folder: Path) -> str:
    return f"continue with: fcos-fast train --resume {shlex.quote(str(folder))}"


def _columns(result: AveragePrecision) -> dict[str, float]:
    """The values of an evaluation by the names of their columns; a class can be named small, as a column is."""
    summary = result.summary()
    columns = {f"ap_{printable(name)}": ap for name, ap in result.per_class.items()}
    return summary | {f"{name} (class)" if name in summary else name: ap for name, ap in columns.items()}


def _evaluate(
    state: TrainState, val_set: DetectionDataset, config: Config, dtype: torch.dtype
) -> tuple[AveragePrecision, list[dict[str, Tensor]]]:
    broadcast_model(state.averaged)
    batch_size = min(config.train.batch_size, EVALUATION_BATCH)
    return evaluate(state.averaged, val_set, dtype, batch_size, config.data.workers)


def _begin(config: Config, categories: Categories, device: torch.device, is_new: bool) -> TrainState:
    """Model, optimizer and moving average as they are before the first step.

    Of a run that is not new the weights come from its own checkpoint; the files that it began with may be gone.
    """
    options = config.train
    seed_everything(options.seed)
    model = build_detector(config.model)
    if options.sync_batch_norm and world_size() > 1:
        if device.type != "cuda":
            raise ValueError(f"train.sync_batch_norm needs GPUs, but the device is {device}; leave it out")
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if options.backbone_weights and is_new:
        load_pretrained(model.backbone.body, options.backbone_weights)
    if options.weights and is_new:
        load_weights(model, options.weights, categories, options.new_classes)
    model.to(device, memory_format=torch.channels_last if options.channels_last else torch.contiguous_format)
    if options.winograd:
        use_winograd(model)
    optimizer = build_optimizer(model, config.optimizer)
    return TrainState(
        model, optimizer, ExponentialMovingAverage(model, options.ema_decay) if options.ema_decay else None
    )


def _make_step(state: TrainState, config: Config, dtype: torch.dtype) -> TrainStep:
    """The step of a state, which is loaded already where a run is resumed."""
    options = config.train
    if options.compile:
        state.model.compile_losses()
    model = parallel(state.model)
    return TrainStep(
        model, state.optimizer, state.ema, dtype, config.optimizer.clip_norm, options.cuda_graphs
    )


def train_epoch(
    state: TrainState, train_step: TrainStep, loader: DataLoader, config: Config
) -> dict[str, float]:
    """One pass over the training split, or the rest of one that ended early; ``train.steps`` can end it early again.

    Returns:
        ``loss`` and ``loss_<name>`` of each of the losses, averaged over steps and processes.

    Raises:
        NonFiniteLossError: a loss or gradient is infinite or not a number.
    """
    state.model.train()
    per_epoch, total = len(loader), config.train.total_steps(len(loader))
    first = state.step - state.epoch * per_epoch  # batches of this epoch that were trained on before
    steps = min(per_epoch, total - state.epoch * per_epoch) - first
    schedule = config.schedule.in_steps(total, per_epoch)
    # Reading the tally waits for the device; a CPU has nothing to wait for.
    read_every = 1 if train_step.device.type == "cpu" else 20
    means: dict[str, float] = {}

    train_step.begin_epoch()
    loader.batch_sampler.set_epoch(state.epoch)
    title = f"epoch {state.epoch + 1}/{config.train.total_epochs(per_epoch)}"
    with Progress(steps, title, images=config.train.batch_size) as progress:
        batches = islice(prefetch(loader, train_step.device), first, first + steps)
        for i, (images, targets) in enumerate(batches, start=1):
            set_learning_rate(state.optimizer, learning_rate_factor(schedule, state.step, total))
            try:
                train_step(images, targets)
            except ValueError as error:
                raise _explained(error) from error
            state.step += 1
            if i % read_every == 0 or i == steps:
                tally = train_step.tally()
                means = {name: total / i for name, total in zip(train_step.losses, tally.sums, strict=True)}
                _check_finite(means, tally, title, config)
            progress.update(means)
    return {"loss": sum(means.values()), **{f"loss_{name}": mean for name, mean in means.items()}}


def _explained(error: ValueError) -> ValueError:
    """torch's complaint about a batch norm, with the remedy."""
    if "more than 1 value per channel" not in str(error):
        return error
    return ValueError(
        f"a batch norm sees one value per channel, of which there is no variance ({error}); give larger images "
        "(model.min_size, augment.size), a larger train.batch_size, or model.norm frozen or group"
    )


def _check_finite(means: dict[str, float], tally: Tally, title: str, config: Config) -> None:
    if tally.skipped:
        what = "gradient" if all(map(math.isfinite, means.values())) else "loss"
        values = ", ".join(f"{name} {mean:g}" for name, mean in means.items())
        raise NonFiniteLossError(
            f"{title}, step {tally.finite + 1}: the {what} is not finite ({values}); lower optimizer.lr, now "
            f"{config.optimizer.lr:g}, or optimizer.clip_norm, now {config.optimizer.clip_norm:g}, "
            "or take train.precision float32"
        )


def _tensorboard(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))


def _print_start(
    model: Detector,
    folder: Path,
    train_set: DetectionDataset,
    val_set: DetectionDataset | None,
    device: str,
) -> None:
    for dataset in (train_set, val_set):
        if dataset is not None and dataset.report is not None:
            print(printable(str(dataset.report)))
    print(train_set.categories)
    print(f"{model.title}; {device}; everything goes to {printable(str(folder))}", flush=True)


def _print_epoch(row: dict[str, float], epochs: int) -> None:
    text = f"epoch {row['epoch']}/{epochs}  loss {row['loss']:.3f}"
    losses = {name.removeprefix("loss_"): row[name] for name in row if name.startswith("loss_")}
    parts = ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items())
    text += f" ({parts})  {row['images_per_second']:.1f} images/s"
    if "ap" in row:
        text += f"  AP {row['ap']:.3f}  AP50 {row['ap50']:.3f}"
    print(f"{text}  {row['seconds']:.1f} s", flush=True)
