"""Training: one flat loop, resumable to the bit."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fcos_fast.data import Categories, DetectionDataset, load_dataset, train_loader
from fcos_fast.engine.average_precision import AveragePrecision
from fcos_fast.engine.checkpoint import (
    describe_model,
    load_checkpoint,
    load_weights,
    random_state,
    save_checkpoint,
    set_random_state,
)
from fcos_fast.engine.config import Config, from_plain, save_config, to_plain
from fcos_fast.engine.ema import ExponentialMovingAverage
from fcos_fast.engine.evaluate import evaluate
from fcos_fast.engine.optimizer import build_optimizer, set_learning_rate
from fcos_fast.engine.precision import autocast, choose_device, choose_precision
from fcos_fast.engine.progress import Progress
from fcos_fast.engine.run_folder import MetricsTable, new_run_folder
from fcos_fast.engine.schedule import learning_rate_factor
from fcos_fast.models import FCOS


class NonFiniteLossError(RuntimeError):
    """The loss became infinite or not a number."""


@dataclass(frozen=True)
class TrainResult:
    """What a run leaves behind.

    Attributes:
        folder: holds ``best.pt``, ``last.pt``, ``metrics.csv``, ``config.yaml``.
        model: the weights of the last epoch, averaged where the run averages, in evaluation mode.
        result: its average precision on the validation split; None for a run without one.
        detections: on the validation split, image by image.
        val_set: the validation split.
    """

    folder: Path
    model: FCOS
    result: AveragePrecision | None
    detections: list[dict[str, Tensor]]
    val_set: DetectionDataset | None


def train(config: Config) -> TrainResult:
    """Train from the beginning, in a new folder ``config.train.runs/config.train.name``."""
    train_set, val_set = load_data(config)
    folder = new_run_folder(config.train.runs, config.train.name)
    return _run(config, folder, train_set, val_set, state=None)


def resume(path: str | Path) -> TrainResult:
    """Continue the run of a folder, or of its ``last.pt``, from the end of its last finished epoch.

    On one machine the result has the same bits as that of a run that was never interrupted.
    """
    path = Path(path)
    path = path / "last.pt" if path.is_dir() else path
    state = load_checkpoint(path)
    if "optimizer" not in state:
        raise ValueError(
            f"{path} holds weights alone, for detecting; resume from {path.with_name('last.pt')}"
        )
    config = from_plain(Config, state["config"])
    train_set, val_set = load_data(config, Categories.from_dict(state["categories"]))
    return _run(config, path.parent, train_set, val_set, state)


def load_data(
    config: Config, categories: Categories | None = None
) -> tuple[DetectionDataset, DetectionDataset | None]:
    """The training split, and the validation split where the configuration names one."""
    data = config.data
    if not data.root:
        raise ValueError("no data set is given; name its folder with --data.root")
    train_set = load_dataset(data.root, data.train, categories, data.strict)
    val_set = load_dataset(data.root, data.val, train_set.categories, data.strict) if data.val else None
    return train_set, val_set


def _run(
    config: Config,
    folder: Path,
    train_set: DetectionDataset,
    val_set: DetectionDataset | None,
    state: dict[str, Any] | None,
) -> TrainResult:
    options = config.train
    device = choose_device(options.device)
    dtype, reason = choose_precision(options.precision, device)
    torch.manual_seed(options.seed)

    config = replace(config, model=replace(config.model, num_classes=len(train_set.categories)))
    model = FCOS(config.model)
    if options.weights and state is None:
        load_weights(model, options.weights, train_set.categories, options.new_classes)
    memory_format = torch.channels_last if options.channels_last else torch.contiguous_format
    model.to(device, memory_format=memory_format)
    optimizer = build_optimizer(model, config.optimizer)
    ema = ExponentialMovingAverage(model, options.ema_decay) if options.ema_decay else None
    loader = train_loader(train_set, options.batch_size, config.augment, options.seed, config.data.workers)
    total_steps = options.epochs * len(loader)

    epoch, best = 0, -math.inf
    if state is not None:
        epoch, best = state["epoch"], state["best"]
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if ema is not None:
            ema.load_state_dict(state["ema"])
        set_random_state(state["rng"])
    table = MetricsTable(folder / "metrics.csv", epoch)
    board = _tensorboard(folder) if options.tensorboard else None
    averaged = model if ema is None else ema.model
    about = {"config": to_plain(config), **describe_model(model, train_set.categories)}

    def save_last() -> None:
        save_checkpoint(
            folder / "last.pt",
            {
                **about,
                "model": model.state_dict(),
                "ema": None if ema is None else ema.state_dict(),
                "optimizer": optimizer.state_dict(),
                "rng": random_state(),
                "epoch": epoch,
                "best": best,
            },
        )

    _print_start(config, folder, train_set, val_set, device, f"{dtype} ({reason})".removeprefix("torch."))
    if state is None:
        save_config(config, folder / "config.yaml")
        save_last()  # from here on whatever interrupts the run, it can be resumed

    result, detections = None, []
    while epoch < options.epochs:
        start = time.perf_counter()
        losses = _train_epoch(model, ema, optimizer, loader, config, epoch, total_steps, device, dtype)
        epoch += 1
        row = {"epoch": epoch, "step": epoch * len(loader), "lr": optimizer.param_groups[0]["lr"], **losses}
        row["images_per_second"] = len(loader) * options.batch_size / (time.perf_counter() - start)

        if val_set is not None and (epoch % options.evaluate_every == 0 or epoch == options.epochs):
            result, detections = evaluate(averaged, val_set, dtype, options.batch_size, config.data.workers)
            row |= result.summary() | {f"ap_{name}": ap for name, ap in result.per_class.items()}
        row["seconds"] = time.perf_counter() - start

        # The table comes first and the checkpoint last: a run killed in between repeats the epoch.
        table.append(row)
        score = row.get("ap", math.nan) if val_set is not None else epoch
        if score > best:
            best = score
            save_checkpoint(
                folder / "best.pt", {**about, "model": averaged.state_dict(), "epoch": epoch, "metrics": row}
            )
        save_last()
        _print_epoch(row, options.epochs)
        if board is not None:
            for name, value in row.items():
                board.add_scalar(name, value, epoch)

    if result is None and val_set is not None:  # a run that was resumed after its end
        result, detections = evaluate(averaged, val_set, dtype, options.batch_size, config.data.workers)
    return TrainResult(folder, averaged.eval(), result, detections, val_set)


def _train_epoch(
    model: FCOS,
    ema: ExponentialMovingAverage | None,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader,
    config: Config,
    epoch: int,
    total_steps: int,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, float]:
    """One pass over the training split; the mean of each loss."""
    model.train()
    loader.sampler.set_epoch(epoch)
    parameters = [p for p in model.parameters() if p.requires_grad]
    # Reading a loss waits for the device; a CPU has nothing to wait for.
    read_every = 1 if device.type == "cpu" else 20
    names: list[str] = []
    total = torch.zeros((), device=device)
    title = f"epoch {epoch + 1}/{config.train.epochs}"
    with Progress(len(loader), title, images=config.train.batch_size) as progress:
        for i, (images, targets) in enumerate(loader):
            step = epoch * len(loader) + i
            set_learning_rate(optimizer, learning_rate_factor(config.schedule, step, total_steps))
            images = [image.to(device, non_blocking=True) for image in images]
            targets = [
                {k: target[k].to(device, non_blocking=True) for k in ("boxes", "labels")}
                for target in targets
            ]
            with autocast(dtype, device):
                losses = model(images, targets)
            names = list(losses)
            values = torch.stack(list(losses.values()))  # (3,)
            optimizer.zero_grad(set_to_none=True)
            values.sum().backward()
            if config.optimizer.clip_norm:
                nn.utils.clip_grad_norm_(parameters, config.optimizer.clip_norm)
            optimizer.step()
            if ema is not None:
                ema.update(model)

            total = total + values.detach()
            if (i + 1) % read_every == 0 or i + 1 == len(loader):
                means = (total / (i + 1)).tolist()
                if not math.isfinite(sum(means)):
                    raise NonFiniteLossError(
                        f"a loss is not finite in epoch {epoch + 1}, step {i + 1}: "
                        + ", ".join(f"{n} {v:g}" for n, v in zip(names, means, strict=True))
                        + f"; lower optimizer.lr ({config.optimizer.lr:g}) or optimizer.clip_norm "
                        f"({config.optimizer.clip_norm:g}), or train with train.precision float32"
                    )
                shown = dict(zip(names, means, strict=True))
            progress.update(shown if i + 1 >= read_every else None)
    return {"loss": sum(means), **{f"loss_{name}": value for name, value in zip(names, means, strict=True)}}


def _tensorboard(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder))


def _print_start(
    config: Config,
    folder: Path,
    train_set: DetectionDataset,
    val_set: DetectionDataset | None,
    device: torch.device,
    precision: str,
) -> None:
    for dataset in (train_set, val_set):
        if dataset is not None and dataset.report is not None:
            print(dataset.report)
    print(train_set.categories)
    threads = f", {torch.get_num_threads()} threads" if device.type == "cpu" else ""
    print(
        f"{config.model.backbone} on {device}{threads}, in {precision}; everything goes to {folder}",
        flush=True,
    )


def _print_epoch(row: dict[str, float], epochs: int) -> None:
    text = (
        f"epoch {row['epoch']}/{epochs}  loss {row['loss']:.3f} (classification {row['loss_classification']:.3f}, "
        f"box {row['loss_bbox_regression']:.3f}, centerness {row['loss_bbox_ctrness']:.3f})  "
        f"{row['images_per_second']:.1f} images/s"
    )
    if "ap" in row:
        text += f"  AP {row['ap']:.3f}  AP50 {row['ap50']:.3f}"
    print(f"{text}  {row['seconds']:.1f} s", flush=True)
