"""From data set to batches."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
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


class EpochBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of ``(epoch, index)``, in an order that depends on the seed and epoch alone.

    The epoch travels with the index, so that workers that live through all epochs need not be told of it. Of several
    processes each takes its slice of every batch: together they see what one process sees. Samples that fill no batch
    are left out, others in each epoch.

    Args:
        count: number of samples.
        batch_size: samples per batch, over all processes.
        seed: of the order.
        groups: (count,) int; the samples of a group make batches of their own, and what is left of it makes batches
            with what is left of its neighbours. None: no groups.
        rank, world_size: which of how many processes this is.

    Raises:
        ValueError: the processes cannot share a batch evenly, or there is less than one batch.
    """

    def __init__(
        self,
        count: int,
        batch_size: int,
        seed: int = 0,
        groups: np.ndarray | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        if batch_size % world_size:
            raise ValueError(
                f"train_loader: batch_size is {batch_size}, images per step over all processes; with {world_size} "
                f"processes take a multiple of {world_size}"
            )
        if count < batch_size:
            raise ValueError(
                f"train_loader: batch_size is {batch_size} but the data set has {count} images; lower it"
            )
        self.count = count
        self.batch_size = batch_size
        self.seed = seed
        self.groups = groups
        share = batch_size // world_size
        self.slice = slice(rank * share, (rank + 1) * share)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        return ([(epoch, index) for index in batch[self.slice].tolist()] for batch in self._batches())

    def _batches(self) -> np.ndarray:
        """All processes' batches of the epoch, (number of batches, batch size)."""
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(self.count)[: len(self) * self.batch_size]
        if self.groups is None:
            return order.reshape(-1, self.batch_size)
        members = [order[self.groups[order] == group] for group in np.unique(self.groups)]
        filled = [len(group) // self.batch_size * self.batch_size for group in members]
        whole, rest = zip(*map(np.split, members, [[n] for n in filled]), strict=True)
        return rng.permutation(np.concatenate(whole + rest).reshape(-1, self.batch_size))


def aspect_ratio_groups(dataset: DetectionDataset) -> np.ndarray:
    """(N,) int: which images have a similar aspect ratio; of six groups between 1:2 and 2:1, and one beyond each."""
    ratios = [width / height for width, height in (record.size for record in dataset.records)]
    return np.digitize(ratios, 2 ** np.linspace(-1, 1, 7))


def train_loader(
    dataset: DetectionDataset,
    batch_size: int,
    augment: AugmentConfig | None = None,
    seed: int = 0,
    workers: int | None = None,
    packer: BatchPacker | None = None,
    group_by_aspect_ratio: bool | None = None,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | None = None,
) -> DataLoader:
    """Batches for training: shuffled and varied anew in each epoch, the last incomplete batch left out.

    Call ``loader.batch_sampler.set_epoch(epoch)`` before each epoch. Order and augmentation then depend on the seed
    and the epoch alone, whatever the number of workers and processes.

    Args:
        dataset: what to train on.
        batch_size: images per batch, over all processes.
        augment: how they are varied.
        seed: of order and augmentation.
        workers: processes that read images; None: :func:`default_workers`.
        packer: makes packed batches for its model instead of lists, so that nothing is left to do on the host.
        group_by_aspect_ratio: make batches of images of similar aspect ratio, which need little padding; None:
            where the augmentation does not give all images one size.
        rank, world_size: which of how many processes this is; it gets its slice of each batch.
        device: where the batches are used, which decides on pinned memory and the default of ``workers``; None: a GPU
            where there is one.

    Raises:
        ValueError: the processes cannot share a batch evenly, or the data set holds less than one batch.
    """
    augment = augment or AugmentConfig()
    if group_by_aspect_ratio is None:
        group_by_aspect_ratio = augment.size is None
    groups = aspect_ratio_groups(dataset) if group_by_aspect_ratio else None
    return _loader(
        AugmentedDataset(dataset, augment, seed, None if packer is None else packer.resize),
        EpochBatchSampler(len(dataset), batch_size, seed, groups, rank, world_size),
        workers,
        collate if packer is None else packer.collate,
        device,
    )


def eval_loader(
    dataset: DetectionDataset,
    batch_size: int,
    workers: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device | None = None,
) -> DataLoader:
    """Batches for evaluation: every image once, unchanged and in order; ``workers`` and ``device`` as for training.

    Of several processes, each takes every ``world_size``-th batch.
    """
    indices = range(len(dataset))
    batches = [indices[start : start + batch_size] for start in indices[::batch_size]]
    return _loader(dataset, batches[rank::world_size], workers, collate, device)


def _is_gpu(device: torch.device | None) -> bool:
    return torch.cuda.is_available() if device is None else device.type == "cuda"


def default_workers(device: torch.device | None = None) -> int:
    """Processes that read images for ``device`` where nobody says how many; None: for a GPU where there is one.

    For a GPU one per processor that this process may use and that neither its own main thread nor another process of
    ``torchrun`` on this machine needs, 8 at most. For a CPU none: training has every processor busy for longer than
    reading takes.
    """
    if not _is_gpu(device):
        return 0
    processors = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(max(processors - 1, 1), 8)


def _loader(
    dataset: Dataset,
    batches: Iterable[Sequence[Any]],
    workers: int | None,
    collate_fn: Callable[[list], Any],
    device: torch.device | None,
) -> DataLoader:
    workers = default_workers(device) if workers is None else workers
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        prefetch_factor=PREFETCH if workers else None,
        collate_fn=collate_fn,
        pin_memory=_is_gpu(device),
        # A loader draws one number per epoch; from its own generator, lest it move the run's random state.
        generator=torch.Generator(),
    )
