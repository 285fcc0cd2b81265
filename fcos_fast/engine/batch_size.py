"""``train.batch_size auto``: the largest batch whose step fits the memory of the GPU."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace

import torch

from fcos_fast.assignment import GroundTruth, bucket_capacity
from fcos_fast.data import Categories, DetectionDataset
from fcos_fast.engine.config import Config
from fcos_fast.engine.distributed import all_agree, is_main, own_device, world_size
from fcos_fast.engine.ema import ExponentialMovingAverage
from fcos_fast.engine.optimizer import build_optimizer
from fcos_fast.engine.step import TrainStep
from fcos_fast.models import ImageBatch, build_detector
from fcos_fast.models.sizes import Size, batch_size, resized
from fcos_fast.precision import choose_precision

SHARE = 0.8
"""Part of the free memory that a step may use: the rest is for larger batches of boxes, and fragmentation."""

ON_CPU = 8
"""A CPU computes a larger batch no faster, and an epoch then has fewer steps."""

STEPS = 16
"""An epoch has at least this many steps, if the images suffice: fewer train badly."""


def with_batch_size(config: Config, train_set: DetectionDataset) -> Config:
    """``config`` with the number of images per step in place of ``train.batch_size auto``; a line tells it.

    Raises:
        ValueError: not even one image per process fits.
    """
    options = config.train
    if options.batch_size != "auto":
        return config
    unit = world_size() * options.accumulate
    images = len(train_set) // unit
    most = max(min(images, 2), images // STEPS, 1)  # of a process, computed together; batch norms need two
    device = own_device(options.device)
    if device.type == "cuda":
        share, why = largest_share(config, train_set, device, most)
    else:
        share, why = (
            min(max(1, ON_CPU // unit), most),
            f"on a {device.type.upper()} a larger batch is not faster",
        )
    if share == most:
        steps = len(train_set) // (share * unit)
        why = f"an epoch of {len(train_set)} images has {steps} step{'s' if steps != 1 else ''} then"
    if is_main():
        print(f"train.batch_size auto: {share * unit} ({why}); it is in config.yaml", flush=True)
    return replace(config, train=replace(options, batch_size=share * unit))


def largest_share(
    config: Config, train_set: DetectionDataset, device: torch.device, most: int
) -> tuple[int, str]:
    """The largest number of images, at most ``most``, with which a step fits every process; and the reason in words."""
    free, _ = torch.cuda.mem_get_info(device)
    limit = SHARE * free
    size = largest_batch(config, train_set)

    def fits(count: int) -> bool:
        try:
            used = trial(config, train_set.categories, device, count, size)
        except torch.OutOfMemoryError:
            used = float("inf")
        clean_up(device)
        return all_agree(used <= limit)

    share = largest(fits, most)
    if not share:
        raise ValueError(
            f"train.batch_size auto: a step with one image, padded to {size[0]}x{size[1]} pixels, does not fit "
            f"{limit / 1e9:.1f} GB; use a smaller augment.size, model.min_size or backbone"
        )
    return share, f"the largest whose step fits {SHARE:.0%} of {free / 1e9:.1f} GB free"


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest of 1, 2, 3, 4, 6, 8, 12, 16, ... up to ``most`` that fits, if all below do; 0 if 1 does not."""
    found, count = 0, 1
    while count <= most and fits(count):
        found, count = count, 2 * count
    between = found + found // 2
    return between if found > 1 and between <= most and fits(between) else found


def trial(config: Config, categories: Categories, device: torch.device, count: int, size: Size) -> float:
    """Bytes that two steps with ``count`` images of ``size`` need: the second has the state of the optimizer.

    Raises:
        torch.OutOfMemoryError: they do not fit.
    """
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_reserved(device)
    options, dtype = config.train, choose_precision(config.train.precision, device)[0]
    # without collectives: a process may run out of memory before them
    model = build_detector(replace(config.model, average_totals=False)).to(device).train()
    model.to(memory_format=torch.channels_last if options.channels_last else torch.contiguous_format)
    ema = ExponentialMovingAverage(model, options.ema_decay) if options.ema_decay else None
    step = TrainStep(model, build_optimizer(model, config.optimizer), ema, dtype, config.optimizer.clip_norm)
    for _ in range(2):
        step(*_batch(count, size, device))
    step.tally()
    return torch.cuda.max_memory_reserved(device) - before


def _batch(count: int, size: Size, device: torch.device) -> tuple[ImageBatch, GroundTruth]:
    """Black images, each with 16 boxes."""
    images = torch.zeros((count, 3, *size), dtype=torch.uint8, device=device)
    box = torch.tensor([[0.0, 0.0, size[1] / 2, size[0] / 2]]).expand(16, 4)
    labels = torch.zeros(16, dtype=torch.int64)
    gt = GroundTruth.pack([box] * count, [labels] * count, bucket_capacity(16 * count))
    return ImageBatch(images, [size] * count), gt.to(device)


def clean_up(device: torch.device) -> None:
    """Return the memory of a trial."""
    gc.collect()  # a model has cycles
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)


def largest_batch(config: Config, train_set: DetectionDataset) -> Size:
    """(height, width) of the largest padded batch: an upright and a wide image in one need the longer sides of both."""
    model = config.model
    if config.augment.size is not None:
        sizes = {config.augment.size}
    else:
        sizes = {(height, width) for width, height in train_set.records.sizes.tolist()}
    min_size = max(model.min_size) if isinstance(model.min_size, tuple) else model.min_size
    if min_size is not None:
        sizes = {resized(size, min_size, model.max_size) for size in sizes}
    scale = config.augment.multi_scale[1]
    return batch_size([(round(h * scale), round(w * scale)) for h, w in sizes], model.size_divisor)
