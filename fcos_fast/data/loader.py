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
from .transforms import AugmentedDataset, SampleKey

if TYPE_CHECKING:
    from fcos_fast.models import BatchPacker

PREFETCH = 2
"""Batches that each worker prefetches."""

_PARTS = 1024  # of a repeat, which is a whole number of them, so that sums are exact

Batch = tuple[list[Tensor], list[dict[str, Any]]]


def collate(samples: list[tuple[Tensor, dict[str, Any]]]) -> Batch:
    """Batch samples as lists, because images may differ in size."""
    images, targets = zip(*samples, strict=True)
    return list(images), list(targets)


class EpochBatchSampler(Sampler[list[SampleKey]]):
    """Batches of :class:`SampleKey` in an order that depends only on the seed and the epoch.

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
        repeats: (count,) float, how many times each sample is drawn per epoch on average; in every epoch this number
            rounded up or down at random. None: once.
        scale: range of the random factor of the input size of each batch.

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
        repeats: np.ndarray | None = None,
        scale: tuple[float, float] = (1.0, 1.0),
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
        self.repeats = None if repeats is None else np.round(repeats * _PARTS).astype(np.int64)
        self.scale = scale
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
        samples = self.count if self.repeats is None else int(self.repeats.sum()) // _PARTS
        return samples // self.batch_size

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch = self.epoch
        low, high = self.scale
        # a key that no sample has
        scales = np.random.default_rng([self.seed, epoch, 2**40]).uniform(low, high, len(self)).tolist()
        return (
            [SampleKey(epoch, index, repeat, scale) for index, repeat in batch[self.slice].tolist()]
            for batch, scale in zip(self._batches(), scales, strict=True)
        )

    def _batches(self) -> np.ndarray:
        """(number of batches, batch size, 2): index and repeat of the epoch's samples over all ranks."""
        rng = np.random.default_rng([self.seed, self.epoch])
        order = self._samples(rng)[: len(self) * self.batch_size]
        if self.groups is None:
            return order.reshape(-1, self.batch_size, 2)
        members = [order[self.groups[order[:, 0]] == group] for group in np.unique(self.groups)]
        filled = [len(group) // self.batch_size * self.batch_size for group in members]
        whole, rest = zip(*map(np.split, members, [[n] for n in filled]), strict=True)
        return rng.permutation(np.concatenate(whole + rest).reshape(-1, self.batch_size, 2))

    def _samples(self, rng: np.random.Generator) -> np.ndarray:
        """(N, 2): index and repeat of each sample of the epoch, in random order."""
        order = rng.permutation(self.count)
        if self.repeats is None:
            return np.stack((order, np.zeros_like(order)), axis=1)
        # Systematic sampling: on a line of all repeats, whole numbers are drawn. So their count hardly varies.
        ends = rng.integers(_PARTS) + np.cumsum(self.repeats[order])
        times = np.diff(ends // _PARTS, prepend=0)
        starts = np.cumsum(times) - times
        repeats = np.arange(times.sum()) - np.repeat(starts, times)
        return rng.permutation(np.stack((np.repeat(order, times), repeats), axis=1))


def repeat_factors(dataset: DetectionDataset, threshold: float) -> np.ndarray:
    """(N,) float, how often repeat-factor sampling shows each image (LVIS, Gupta et al., 2019, arXiv:1908.03195).

    The largest ``max(1, sqrt(threshold / f))`` of its classes, where ``f`` is the fraction of images with a box of the
    class. Ignored boxes do not count; an image without boxes is shown once.
    """
    classes = [np.unique(record.labels[~record.ignore]) for record in dataset.records]
    images = np.bincount(np.concatenate(classes), minlength=len(dataset.categories))  # of each class
    factors = np.sqrt(threshold * len(classes) / np.maximum(images, 1)).clip(min=1)
    return np.array([factors[labels].max(initial=1) for labels in classes])


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
    repeat_threshold: float = 0.0,
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
        repeat_threshold: threshold of :func:`repeat_factors`; 0 shows every image once per epoch.

    Raises:
        ValueError: the batch cannot be split evenly among the ranks, the dataset has fewer images than one batch, or
            ``augment.multi_scale`` without ``packer``, which resizes the images.
    """
    augment = augment or AugmentConfig()
    if group_by_aspect_ratio is None:
        group_by_aspect_ratio = augment.size is None
    groups = aspect_ratio_groups(dataset) if group_by_aspect_ratio else None
    repeats = repeat_factors(dataset, repeat_threshold) if repeat_threshold else None
    if packer is None and augment.multi_scale != (1.0, 1.0):
        raise ValueError(
            f"augment.multi_scale={augment.multi_scale} needs a packer, which resizes the images"
        )
    return _loader(
        AugmentedDataset(dataset, augment, seed, None if packer is None else packer.resize),
        EpochBatchSampler(
            len(dataset), batch_size, seed, groups, rank, world_size, repeats, augment.multi_scale
        ),
        workers,
        collate if packer is None else packer.collate,
        device,
    )


def close_mosaic(loader: DataLoader[Any], epochs: int) -> None:
    """End mosaic and copy-paste before the last ``augment.close_mosaic`` of the ``epochs``.

    Raises:
        ValueError: none of the epochs would have them.
    """
    dataset = loader.dataset
    assert isinstance(dataset, AugmentedDataset)
    config = dataset.config
    dataset.mixed_epochs = epochs - config.close_mosaic
    for name in ("mosaic", "copy_paste"):
        if getattr(config, name) and dataset.mixed_epochs <= 0:
            raise ValueError(
                f"augment.{name}={getattr(config, name)} in no epoch: the run has {epochs}, and augment.close_mosaic "
                f"is {config.close_mosaic}; give fewer, or more train.epochs"
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
