"""Dividing a dataset so that every split has its share of every class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .records import Records


def stratified(
    counts: np.ndarray, images: np.ndarray, fractions: Sequence[float], seed: int = 0
) -> np.ndarray:
    """Assign units (an image, or images that stay together) to splits.

    Iterative stratification of multi-label data (Sechidis et al., 2011): the rarest class goes first, and each of its
    units goes to the split that lacks most of that class. A split that has all its images gets no more, so that without
    groups the sizes are exact.

    Args:
        counts: (U, C) boxes of each class in each unit.
        images: (U,) images of each unit, at least 1.
        fractions: (S,) shares of the splits, positive, with sum 1.
        seed: decides between equals.

    Returns:
        (U,) int64, the split of each unit.
    """
    rng = np.random.default_rng(seed)
    empty = (counts.sum(axis=1, keepdims=True) == 0) * images[:, None]
    counts = np.concatenate((counts, empty), axis=1).astype(
        np.float64
    )  # images without boxes are a class, too
    missing = np.outer(fractions, counts.sum(axis=0))  # (S, C + 1)
    room = _quotas(int(images.sum()), fractions)
    result = np.full(len(counts), -1)
    order = rng.permutation(len(counts))
    while len(order):
        totals = counts[order].sum(axis=0)
        rarest = int(np.where(totals > 0, totals, np.inf).argmin())
        has = counts[order, rarest] > 0
        units, order = order[has], order[~has]
        for unit in units[np.argsort(-counts[units, rarest], kind="stable")].tolist():
            fits = room >= images[unit]
            fits = fits if fits.any() else room == room.max()
            split = _best(fits, missing[:, rarest], room, rng.random(len(room)))
            result[unit] = split
            missing[split] -= counts[unit]
            room[split] -= images[unit]
    return result


def class_counts(records: Records, classes: int) -> np.ndarray:
    """(I, C) int64, the boxes of each class in each image."""
    owner = np.repeat(np.arange(len(records)), np.diff(records.offsets))
    cells = np.bincount(owner * classes + records.labels, minlength=len(records) * classes)
    return cells.reshape(len(records), classes)


def _best(fits: np.ndarray, missing: np.ndarray, room: np.ndarray, draw: np.ndarray) -> int:
    """The split that fits and lacks most: boxes of the class, then images, then the draw decides."""
    return max(np.flatnonzero(fits).tolist(), key=lambda split: (missing[split], room[split], draw[split]))


def _quotas(images: int, fractions: Sequence[float]) -> np.ndarray:
    """(S,) int64, images of each split: the largest remainders are rounded up."""
    exact = np.array(fractions) * images
    quotas = np.floor(exact + 1e-9).astype(np.int64)
    largest = np.argsort(quotas - exact, kind="stable")
    quotas[largest[: images - quotas.sum()]] += 1
    return quotas
