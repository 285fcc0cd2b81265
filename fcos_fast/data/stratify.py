"""Dividing a dataset so that every split has its share of every class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .records import Records

EXCHANGES, CANDIDATES = 2000, 500
"""Units for which an exchange is looked for, and units among which."""


def stratified(
    counts: np.ndarray, images: np.ndarray, fractions: Sequence[float], seed: int = 0
) -> np.ndarray:
    """Assign units (an image, or images that stay together) to splits.

    Iterative stratification of multi-label data (Sechidis et al., 2011): the rarest class goes first, and each of its
    units goes to the split that lacks most of that class. A split that has all its images gets no more, so that without
    groups the sizes are exact. What is then left to the last, most frequent classes is evened out by exchanging units.

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
    totals = counts.sum(axis=0)  # of the units that are in no split yet
    while len(order):
        rarest = int(np.where(totals > 0, totals, np.inf).argmin())
        has = counts[order, rarest] > 0
        units, order = order[has], order[~has]
        totals -= counts[units].sum(axis=0)
        for unit in units[np.argsort(-counts[units, rarest], kind="stable")].tolist():
            fits = room >= images[unit]
            fits = fits if fits.any() else room == room.max()
            split = _best(fits, missing[:, rarest], room, rng.random(len(room)))
            result[unit] = split
            missing[split] -= counts[unit]
            room[split] -= images[unit]
    _even_out(result, counts, images, np.array(fractions), rng)
    return result


def class_counts(records: Records, classes: int) -> np.ndarray:
    """(I, C) int64, the boxes of each class in each image."""
    owner = np.repeat(np.arange(len(records)), np.diff(records.offsets))
    cells = np.bincount(owner * classes + records.labels, minlength=len(records) * classes)
    return cells.reshape(len(records), classes)


def _even_out(
    split: np.ndarray, counts: np.ndarray, images: np.ndarray, fractions: np.ndarray, rng: np.random.Generator
) -> None:
    """Exchange units of the same number of images between splits while the shares of the classes get closer to the
    fractions, by the sum of squares over splits and classes."""
    weights = counts / np.maximum(counts.sum(axis=0), 1)  # share of each unit in each class
    excess = np.stack([weights[split == s].sum(axis=0) - f for s, f in enumerate(fractions)])
    for _ in range(EXCHANGES):
        unit = int(rng.integers(len(split)))
        others = rng.integers(len(split), size=CANDIDATES)
        others = others[(split[others] != split[unit]) & (images[others] == images[unit])]
        if not len(others):
            continue
        moved = weights[others] - weights[unit]  # what the unit's split gains and the other one loses
        change = (moved * (excess[split[unit]] - excess[split[others]] + moved)).sum(axis=1)
        best = int(change.argmin())
        if change[best] < 0:
            other = others[best]
            excess[split[unit]] += moved[best]
            excess[split[other]] -= moved[best]
            split[unit], split[other] = split[other], split[unit]


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
