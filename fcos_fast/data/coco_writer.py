"""Datasets as COCO files: ``annotations/instances_SPLIT.json`` and a folder of images per split."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import exact
from .categories import Categories
from .dataset import DetectionDataset
from .image_names import relative_names, unique_names
from .paths import same_name
from .records import Records
from .writing import Put, labels_in, note


def write(
    folder: Path, splits: Mapping[str, DetectionDataset], categories: Categories, put: Put
) -> list[str]:
    """Write the dataset into ``folder``; see :func:`.conversion.convert`."""
    (folder / "annotations").mkdir()
    renamed = 0
    for split, dataset in splits.items():
        split = split or "all"
        relative = relative_names(dataset.records.files[:])
        names = unique_names(((name,) for name in relative), same_name)
        renamed += sum(name != old for name, old in zip(names, relative, strict=True))
        content = {
            "images": _images(dataset.records, names),
            "annotations": _annotations(dataset.records, labels_in(categories, dataset), categories),
            "categories": [
                {"id": i, "name": name} for i, name in zip(categories.ids, categories.names, strict=True)
            ],
        }
        file = folder / "annotations" / f"instances_{split}.json"
        file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        for source, name in zip(dataset.records.files, names, strict=True):
            put(source, folder / split / name)
    return [
        *note(renamed, "images renamed, so that their names differ"),
        *note(
            _changed_ids(splits, categories), "class ids not kept: the splits number the classes differently"
        ),
    ]


def _changed_ids(splits: Mapping[str, DetectionDataset], categories: Categories) -> int:
    """The number of classes that have another id than in one of the splits; only COCO files have ids."""
    ids = set(zip(categories.ids, categories.names, strict=True))
    changed = {
        name
        for dataset in splits.values()
        for i, name in zip(dataset.categories.ids, dataset.categories.names, strict=True)
        if dataset.records.image_ids is not None and (i, name) not in ids
    }
    return len(changed)


def _image_ids(records: Records) -> list[int | str]:
    """The ids of a COCO file; otherwise the numbers from 1."""
    ids = (records.image_id(i) for i in range(len(records)))
    return [i if number is None else number for i, number in enumerate(ids, start=1)]


def _images(records: Records, names: list[str]) -> list[dict[str, Any]]:
    rows = zip(_image_ids(records), names, records.sizes.tolist(), strict=True)
    return [{"id": i, "file_name": name, "width": size[0], "height": size[1]} for i, name, size in rows]


def _annotations(records: Records, labels: np.ndarray, categories: Categories) -> list[dict[str, Any]]:
    owners = np.repeat(np.arange(len(records)), np.diff(records.offsets)).tolist()
    ids = _image_ids(records)
    starts = exact.shortest(records.boxes[:, :2])
    bboxes = np.concatenate((starts, exact.sides(starts, records.boxes[:, 2:])), axis=1)
    columns = (bboxes, exact.shortest(records.areas), records.ignore)
    rows = zip(owners, labels.tolist(), *(column.tolist() for column in columns), strict=True)
    return [
        {
            "id": i,
            "image_id": ids[owner],
            "category_id": categories.ids[label],
            "bbox": bbox,
            "area": area,
            "iscrowd": int(ignore),
        }
        for i, (owner, label, bbox, area, ignore) in enumerate(rows, start=1)
    ]
