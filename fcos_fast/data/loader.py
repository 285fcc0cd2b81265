"""Dataloaders for training and evaluation."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from .augment import AugmentConfig
from .dataset import DetectionDataset
from .transforms import AugmentedDataset

if TYPE_CHECKING:
    from fcos_fast.models import BatchPacker

PREFETCH = 2
"""Batches that each worker prefetches."""

Batch = tuple[list[Tensor], list[dict[str, Any]]]


def collate(samples: list[tuple[Tensor, dict[str, Any]]]) -> Batch:
    """Batch samples as lists, because images may differ in size."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


class EpochBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of ``(epoch, index)`` in an order that depends only on the seed and the epoch.

    The epoch is part of the key because persistent workers cannot be told when a new one starts. Each rank gets its
    slice of every batch: together, the ranks see what a single process sees. The last incomplete batch is dropped; its
    samples differ from epoch to epoch.

    Args:
        count: number of samples.
        batch_size: samples per batch, over all ranks.
        seed: seed of the order.
        groups: (count,) int, ascending by similarity. A batch contains samples of one group, except that the rest of a
            group forms batches with the rest of its neighbors. None: no groups.
        rank: rank of this process.
        world_size: number of processes.

    Raises:
        ValueError: the batch cannot be split evenly among the ranks, or there are fewer samples than one batch.
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
                f"processes use a multiple of {world_size}"
            )
        if count < batch_size:
            raise ValueError(
                f"train_loader: batch_size is {batch_size} but the dataset has {count} images; use at most {count}"
            )
        self.count = count
        self.batch_size = batch_size
        self.seed = seed
        self.groups = groups
        share = batch_size // world_size
        self.slice = slice(rank * share, (rank + 1) * share)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count // self.batch_size

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        return ([(epoch, index) for index in batch[self.slice].tolist()] for batch in self._batches())

    def _batches(self) -> np.ndarray:
        """The batches of the epoch over all ranks, (number of batches, batch size)."""
        rng = np.random.default_rng([self.seed, self.epoch])
        order = rng.permutation(self.count)[: len(self) * self.batch_size]
        if self.groups is None:
            return order.reshape(-1, self.batch_size)
        members = [order[self.groups[order] == group] for group in np.unique(self.groups)]
        filled = [len(group) // self.batch_size * self.batch_size for group in members]
        whole, rest = zip(*map(np.split, members, [[n] for n in filled]), strict=True)
        return rng.permutation(np.concatenate(whole + rest).reshape(-1, self.batch_size))


def aspect_ratio_groups(dataset: DetectionDataset) -> np.ndarray:
    """(N,) int, the group of each image by aspect ratio: six groups between 1:2 and 2:1, and one beyond each end."""
    width, height = dataset.records.sizes.T
    return np.digitize(width / height, 2 ** np.linspace(-1, 1, 7))


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
) -> DataLoader[Any]:
    """Batches for training: shuffled and augmented differently in each epoch; the last incomplete batch is dropped.

    Call ``loader.batch_sampler.set_epoch(epoch)`` before each epoch. Order and augmentation then depend only on the
    seed and the epoch, not on the number of workers and processes.

    Args:
        dataset: dataset to train on.
        batch_size: images per batch, over all ranks.
        augment: augmentation of the images.
        seed: seed of order and augmentation.
        workers: dataloader workers; None: :func:`default_workers`.
        packer: packs batches for its model in the workers, instead of returning lists.
        group_by_aspect_ratio: batch images of similar aspect ratio, which need little padding. None does so unless the
            augmentation gives all images one size.
        rank: rank of this process, which gets its slice of each batch.
        world_size: number of processes.
        device: device that uses the batches; decides on pinned memory and the default of ``workers``. None: a GPU if
            available.

    Raises:
        ValueError: the batch cannot be split evenly among the ranks, or the dataset has fewer images than one batch.
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
) -> DataLoader[Any]:
    """Batches for evaluation: every image once, unchanged and in order. Each rank gets every ``world_size``-th batch.

    ``workers`` and ``device`` are as for :func:`train_loader`.
    """
    indices = range(len(dataset))
    batches = [list(indices[start : start + batch_size]) for start in indices[::batch_size]]
    return _loader(dataset, batches[rank::world_size], workers, collate, device)


def _is_gpu(device: torch.device | None) -> bool:
    return torch.cuda.is_available() if device is None else device.type == "cuda"


def default_workers(device: torch.device | None = None) -> int:
    """Default number of dataloader workers for ``device``; None: a GPU if available.

    For a GPU: the processors available to this process, divided among the processes of ``torchrun`` on this machine,
    minus one for the main process; at least 1 and at most 8. For a CPU: 0, because training keeps all processors busy
    and takes longer than loading.
    """
    if not _is_gpu(device):
        return 0
    processors = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(max(processors - 1, 1), 8)


def _loader(
    dataset: Dataset[Any],
    batches: Sampler[list[Any]] | Iterable[list[Any]],
    workers: int | None,
    collate_fn: Callable[[list[Any]], Any],
    device: torch.device | None,
) -> DataLoader[Any]:
    workers = default_workers(device) if workers is None else workers
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        prefetch_factor=PREFETCH if workers else None,
        collate_fn=collate_fn,
        pin_memory=_is_gpu(device),
        # A loader draws one number per epoch; its own generator leaves the run's random state unchanged.
        generator=torch.Generator(),
    )
