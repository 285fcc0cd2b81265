"""What the writers of all dataset formats share."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np

from .categories import Categories
from .checks import DataError
from .dataset import DetectionDataset

ImageFiles: TypeAlias = Literal["hardlink", "symlink", "copy"]
"""How images come into another folder."""

Put: TypeAlias = Callable[[str, Path], None]
"""``put(source, target)`` places an image file."""


def placing(how: ImageFiles) -> Put:
    """The function that places image files; it makes the folders above them."""

    def put(source: str, target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        source = os.path.realpath(source)
        if how == "copy":
            shutil.copyfile(source, target)
        elif how == "symlink":
            target.symlink_to(source)
        else:
            _hard_link(source, target)

    return put


def _hard_link(source: str, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        raise DataError(
            f"{source}: cannot be hard-linked into {target.parent} ({error.strerror}); give --images copy or symlink"
        ) from None


def labels_in(categories: Categories, dataset: DetectionDataset) -> np.ndarray:
    """(M,) int64, the labels of the dataset's boxes in ``categories``, by class name."""
    mapped = [categories.label_of(name) for name in dataset.categories.names]
    labels: np.ndarray = np.array(mapped, dtype=np.int64)[dataset.records.labels]
    return labels


def has_own_ids(categories: Categories) -> bool:
    """Whether the dataset's ids are not just the numbers from 1."""
    return categories.ids != tuple(range(1, len(categories) + 1))


def areas_of_their_own(splits: Mapping[str, DetectionDataset]) -> int:
    """The number of objects whose area is not that of their box: COCO files have the areas of segmentations."""
    count = 0
    for dataset in splits.values():
        records = dataset.records
        area = (records.boxes[:, 2:] - records.boxes[:, :2]).prod(axis=1)
        count += int((np.abs(area - records.areas) > 0.001 * area + 1).sum())  # files round areas
    return count


def note(count: int, what: str) -> list[str]:
    """``["3 images renamed"]``; nothing if there are none."""
    return [f"{count} {what}"] if count else []
