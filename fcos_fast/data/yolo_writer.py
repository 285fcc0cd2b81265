"""Datasets in YOLO format: ``data.yaml``, and the folders ``images/SPLIT`` and ``labels/SPLIT``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from . import exact
from .categories import Categories
from .checks import DataError
from .dataset import DetectionDataset
from .image_names import relative_names, stem, unique_names
from .records import Records
from .writing import Put, areas_of_their_own, has_own_ids, labels_in, note
from .yolo import SPLIT_ALIASES, SPLITS, label_file


def write(
    folder: Path, splits: Mapping[str, DetectionDataset], categories: Categories, put: Put
) -> list[str]:
    """Write the dataset into ``folder``; see :func:`.conversion.convert`."""
    import yaml

    renamed = ignored = inexact = 0
    content: dict[str, object] = {}
    for split, dataset in _splits_by_name(splits).items():
        content[split] = f"images/{split}"
        records = dataset.records
        relative = relative_names(records.files[:])
        names = unique_names(((name,) for name in relative), stem)
        renamed += sum(name != old for name, old in zip(names, relative, strict=True))
        ignored += int(records.ignore.sum())
        numbers, held = _numbers(records)
        inexact += int((~held & ~records.ignore).sum())
        labels = labels_in(categories, dataset)
        for i, (source, name) in enumerate(zip(records.files, names, strict=True)):
            image = folder / "images" / split / name
            put(source, image)
            rows = np.arange(*records.offsets[i : i + 2])
            lines = [_line(labels[row], numbers[row]) for row in rows[~records.ignore[rows]]]
            file = folder / label_file(image.relative_to(folder))
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("".join(lines), encoding="ascii")
    content["names"] = dict(enumerate(categories.names))
    text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    return [
        *note(renamed, "images renamed, because images of one stem would share their labels"),
        *note(ignored, "difficult or crowd boxes omitted: YOLO cannot mark them"),
        *note(inexact, "boxes that YOLO's fractions cannot hold exactly, rounded"),
        *note(areas_of_their_own(splits), "areas of objects not kept: the boxes' own are used"),
        *(["category ids not kept: YOLO numbers the classes from 0"] if has_own_ids(categories) else []),
    ]


def _splits_by_name(splits: Mapping[str, DetectionDataset]) -> dict[str, DetectionDataset]:
    """The splits by the names that YOLO has: ``train`` for train2017 and for a single split, ``val`` for valid.

    Raises:
        DataError: a split has no such name, or two have the same one.
    """
    if len(splits) == 1 and _yolo_name(next(iter(splits))) not in SPLITS:
        return {"train": next(iter(splits.values()))}
    named: dict[str, DetectionDataset] = {}
    for split, dataset in splits.items():
        name = _yolo_name(split)
        if name not in SPLITS or name in named:
            raise DataError(
                f"split {split}: a YOLO dataset has one each of {', '.join(SPLITS)}; convert the splits that belong "
                "there one by one with --data.split"
            )
        named[name] = dataset
    return named


def _yolo_name(split: str) -> str:
    name = split.rstrip("0123456789")
    return SPLIT_ALIASES.get(name, name)


def _numbers(records: Records) -> tuple[np.ndarray, np.ndarray]:
    """(M, 4) float64 cx, cy, width, height as fractions, and (M,) bool, whether they hold the box exactly."""
    sizes = np.repeat(records.sizes, np.diff(records.offsets), axis=0)
    numbers, held = np.empty((len(sizes), 4)), np.ones(len(sizes), dtype=bool)
    for axis in range(2):
        ends = records.boxes[:, axis::2]
        numbers[:, axis::2] = exact.relative(ends[:, 0], ends[:, 1], sizes[:, axis])
        held &= (exact.from_relative(numbers[:, axis::2], sizes[:, axis]) == ends).all(axis=1)
    return numbers, held


def _line(label: int, numbers: np.ndarray) -> str:
    return " ".join([str(label), *map(exact.text, numbers.tolist())]) + "\n"
