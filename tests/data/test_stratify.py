"""Division into splits: sizes, shares of the classes, groups, determinism."""

from __future__ import annotations

import numpy as np
import pytest

from fcos_fast.data import Categories, DetectionDataset, Record
from fcos_fast.data.stratify import class_counts, stratified


def long_tailed(images: int = 600, classes: int = 12) -> np.ndarray:
    """(I, C) boxes: the first class is in most images, the last in one of a hundred; some images are empty."""
    rng = np.random.default_rng(0)
    present = rng.random((images, classes)) < np.geomspace(0.7, 0.01, classes)
    return present * rng.geometric(0.4, (images, classes))


def shares(counts: np.ndarray, split: np.ndarray) -> np.ndarray:
    return np.stack([counts[split == i].sum(axis=0) for i in range(split.max() + 1)]) / counts.sum(axis=0)


@pytest.mark.parametrize("fractions", [[0.8, 0.2], [0.7, 0.2, 0.1], [1.0]])
def test_sizes_are_exact_and_classes_have_their_share(fractions):
    counts = long_tailed()
    split = stratified(counts, np.ones(600, dtype=int), fractions)
    assert np.bincount(split).tolist() == [round(600 * share) for share in fractions]
    found = shares(counts, split)
    assert np.abs(found - np.array(fractions)[:, None]).max() < 0.04
    empty = counts.sum(axis=1) == 0
    assert np.abs(np.bincount(split[empty]) / empty.sum() - fractions).max() < 0.1


def test_it_is_closer_than_chance():
    counts = long_tailed()
    split = stratified(counts, np.ones(600, dtype=int), [0.8, 0.2])
    rng = np.random.default_rng(1)
    chance = [np.abs(shares(counts, rng.permutation(split))[1] - 0.2).max() for _ in range(50)]
    assert np.abs(shares(counts, split)[1] - 0.2).max() < min(chance) / 2


def test_groups_stay_together():
    counts = long_tailed()
    rng = np.random.default_rng(2)
    images = rng.integers(1, 12, 100)
    units = rng.integers(100, size=(600,))
    of_unit = np.zeros((100, counts.shape[1]))
    np.add.at(of_unit, units, counts)
    split = stratified(of_unit, images, [0.75, 0.25])
    assert abs(images[split == 0].sum() / images.sum() - 0.75) < 0.02
    assert np.abs(shares(of_unit, split)[0] - 0.75).max() < 0.15


def test_a_group_that_is_larger_than_any_split():
    split = stratified(np.array([[50], [1], [1]]), np.array([50, 1, 1]), [0.6, 0.4])
    assert split[1] == split[2] != split[0]


def test_the_seed_decides():
    counts, ones = long_tailed(), np.ones(600, dtype=int)
    first, again, other = (stratified(counts, ones, [0.8, 0.2], seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_class_counts():
    image, box = np.zeros((3, 9, 9), np.uint8), np.array([[0, 0, 2, 2]], np.float32)
    records = [
        Record(
            f"{i}",
            (9, 9),
            box.repeat(len(labels), 0),
            np.array(labels, int),
            np.zeros(len(labels), bool),
            image,
        )
        for i, labels in enumerate([[2, 0, 2], [], [1]])
    ]
    data = DetectionDataset(records, Categories(("a", "b", "c")))
    assert class_counts(data.records, 3).tolist() == [[1, 0, 2], [0, 0, 0], [0, 1, 0]]
