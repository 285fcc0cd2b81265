"""Pairs of boxes that overlap, against torchvision."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fcos_fast.data import Categories, DetectionDataset, Record
from fcos_fast.models import FCOSConfig
from fcos_fast.quality.box_faults import find_box_faults, overlapping_pairs
from fcos_fast.quality.finding import Split
from fcos_fast.quality.fit import shorter_sides


def split_of(*boxes, size=(100, 100), ignore=None) -> Split:
    """A split of generated images with these boxes."""
    records = []
    for i, b in enumerate(boxes):
        b = np.array(b, np.float32).reshape(-1, 4)
        ignored = np.zeros(len(b), bool) if ignore is None else ignore[i]
        records.append(
            Record(f"{i}", size, b, np.zeros(len(b), np.int64), ignored, np.zeros((3, *size), np.uint8))
        )
    return Split("train", DetectionDataset(records, Categories(("a",))), ["a"])


@pytest.mark.parametrize("above", [0.2, 0.4])
def test_overlapping_pairs(above, torchvision):
    rng = np.random.default_rng(0)
    boxes = [
        np.concatenate([c := rng.uniform(0, 60, (n, 2)), c + rng.uniform(5, 40, (n, 2))], 1)
        for n in (0, 9, 1, 30)
    ]
    ignore = [rng.random(len(b)) < 0.2 for b in boxes]
    split = split_of(*boxes, ignore=ignore)
    expected, first = {}, 0
    for b, ignored in zip(boxes, ignore, strict=True):
        b = torch.tensor(b, dtype=torch.float32)
        overlaps = torchvision.ops.box_iou(b, b).numpy()
        for i, j in zip(*np.nonzero(np.triu(overlaps > above, 1)), strict=True):
            if not ignored[i] and not ignored[j]:
                expected[first + i, first + j] = overlaps[i, j]
        first += len(b)
    found = {(int(i), int(j)): v for i, j, v in zip(*overlapping_pairs(split, above), strict=True)}
    assert len(expected) > 5
    assert found.keys() == expected.keys()
    assert all(found[pair] == pytest.approx(expected[pair], abs=1e-5) for pair in found)


def test_a_box_that_is_labeled_three_times_is_two_too_many():
    box = (10, 10, 40, 40)
    (finding,) = find_box_faults([split_of([box, (1, 1, 9, 9), box, box], [box])])
    assert (finding.kind, finding.count) == ("repeated_boxes", 2)
    assert finding.examples[0].boxes.tolist() == [[*box], [*box]]


def test_shorter_sides_are_those_of_the_input():
    split = split_of([(0, 0, 30, 20)], [(0, 0, 8, 50)], size=(200, 100))
    assert shorter_sides(split, FCOSConfig(min_size=50, max_size=None)).tolist() == [10, 4]
    assert shorter_sides(split, FCOSConfig(min_size=(10, 200), max_size=300)).tolist() == [30, 12]
    assert shorter_sides(split, FCOSConfig(min_size=None)).tolist() == [20, 8]
