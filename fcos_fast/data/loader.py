"""From data set to batches."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from .dataset import DetectionDataset
from .transforms import AugmentConfig, AugmentedDataset

if TYPE_CHECKING:
    from fcos_fast.models import BatchPacker

PREFETCH = 2
"""Batches that each worker holds ready."""

Batch = tuple[list[Tensor], list[dict[str, Any]]]


def collate(samples: list[tuple[Tensor, dict[str, Any]]]) -> Batch:
    """Batch samples as lists: images may differ in size."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


class EpochSampler(Sampler[tuple[int, int]]):
    """``(epoch, index)`` of each of ``count`` samples, in an order that depends on the seed and epoch alone.

    The epoch travels with the index, so that workers that live through all epochs need not be told of it.
    """

    def __init__(self, count: int, seed: int = 0):
        self.count = count
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[int, int]]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.count)
        epoch = self.epoch
        return ((epoch, int(index)) for index in order)


def train_loader(
    dataset: DetectionDataset,
    batch_size: int,
    augment: AugmentConfig | None = None,
    seed: int = 0,
    workers: int | None = 0,
    packer: BatchPacker | None = None,
) -> DataLoader:
    """Batches for training: shuffled and varied anew in each epoch, the last incomplete batch left out.

    Call ``loader.sampler.set_epoch(epoch)`` before each epoch. Order and augmentation then depend on the seed
    and the epoch alone, whatever the number of workers. ``workers`` None: :func:`default_workers`. A ``packer``
    makes packed batches for its model instead of lists, so that nothing is left to do on the host.

    Raises:
        ValueError: the data set holds less than one batch.
    """
    if len(dataset) < batch_size:
        raise ValueError(
            f"train_loader: batch_size is {batch_size} but the data set has {len(dataset)} images; lower it"
        )
    resize = None if packer is None else packer.resize
    return _loader(
        AugmentedDataset(dataset, augment or AugmentConfig(), seed, resize),
        batch_size,
        workers,
        sampler=EpochSampler(len(dataset), seed),
        drop_last=True,
        collate_fn=collate if packer is None else packer.collate,
    )


def eval_loader(dataset: DetectionDataset, batch_size: int, workers: int | None = 0) -> DataLoader:
    """Batches for evaluation: every image once, unchanged and in order. ``workers`` None: :func:`default_workers`."""
    return _loader(dataset, batch_size, workers, collate_fn=collate)


def default_workers() -> int:
    """Processes that read pictures where nobody says how many.

    With a GPU one per processor that this process may use and that neither its own main thread nor another process of
    ``torchrun`` on this machine needs, 8 at most. Without one none: training has every processor busy for longer than
    reading takes.
    """
    if not torch.cuda.is_available():
        return 0
    processors = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(max(processors - 1, 1), 8)


def _loader(dataset: Dataset, batch_size: int, workers: int | None, **options: Any) -> DataLoader:
    workers = default_workers() if workers is None else workers
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        prefetch_factor=PREFETCH if workers else None,
        pin_memory=torch.cuda.is_available(),
        # A loader draws one number per epoch; from its own generator, lest it move the run's random state.
        generator=torch.Generator(),
        **options,
    )
