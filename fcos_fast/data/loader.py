"""From data set to batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from .dataset import DetectionDataset
from .transforms import AugmentConfig, AugmentedDataset

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
    workers: int = 0,
) -> DataLoader:
    """Batches for training: shuffled and varied anew in each epoch, the last incomplete batch left out.

    Call ``loader.sampler.set_epoch(epoch)`` before each epoch. Order and augmentation then depend on the seed
    and the epoch alone, whatever the number of workers.

    Raises:
        ValueError: the data set holds less than one batch.
    """
    if len(dataset) < batch_size:
        raise ValueError(
            f"train_loader: batch_size is {batch_size} but the data set has {len(dataset)} images; lower it"
        )
    augmented = AugmentedDataset(dataset, augment or AugmentConfig(), seed)
    return _loader(augmented, batch_size, workers, sampler=EpochSampler(len(dataset), seed), drop_last=True)


def eval_loader(dataset: DetectionDataset, batch_size: int, workers: int = 0) -> DataLoader:
    """Batches for evaluation: every image once, unchanged and in order."""
    return _loader(dataset, batch_size, workers)


def _loader(dataset: Dataset, batch_size: int, workers: int, **options: Any) -> DataLoader:
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        # A loader draws one number per epoch; from its own generator, lest it move the run's random state.
        generator=torch.Generator(),
        **options,
    )
