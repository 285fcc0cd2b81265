"""Datasets in VOC format: ``JPEGImages``, ``Annotations`` and lists of the splits in ``ImageSets/Main``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from . import exact
from .categories import Categories
from .checks import DataError, brief
from .dataset import DetectionDataset
from .image_names import relative_names, stem, unique_names
from .records import Record
from .writing import Put, areas_of_their_own, has_own_ids, note


def write(
    folder: Path, splits: Mapping[str, DetectionDataset], categories: Categories, put: Put
) -> list[str]:
    """Write the dataset into ``folder``; see :func:`.conversion.convert`."""
    _check_class_names(categories)
    for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    records = _by_file(splits)
    relative = relative_names(list(records))
    plain = [name.rpartition("/")[2] for name in relative]
    choices = zip(plain, (name.replace("/", "_") for name in relative), strict=True)
    names = dict(zip(records, unique_names(choices, stem), strict=True))
    for file, (record, dataset) in records.items():
        put(file, folder / "JPEGImages" / names[file])
        xml = to_xml(record, dataset.categories.names, names[file])
        xml.write(folder / "Annotations" / f"{Path(names[file]).stem}.xml", encoding="utf-8")
    for split, dataset in splits.items():
        if split:
            lines = [f"{Path(names[file]).stem}\n" for file in dataset.records.files]
            (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(lines), encoding="utf-8")
    return _notes(splits, categories, sum(a != b for a, b in zip(names.values(), plain, strict=True)))


def to_xml(record: Record, class_names: Sequence[str], file_name: str) -> ElementTree.ElementTree:
    """The annotation of an image. Corners are written as they are read: unchanged, from 0."""

    def add(parent: ElementTree.Element, tag: str, text: object = None) -> ElementTree.Element:
        element = ElementTree.SubElement(parent, tag)
        element.text = None if text is None else str(text)
        return element

    root = ElementTree.Element("annotation")
    add(root, "filename", file_name)
    size = add(root, "size")
    for tag, value in zip(("width", "height", "depth"), (*record.size, 3), strict=True):
        add(size, tag, value)
    boxes = exact.shortest(record.boxes).tolist()
    for box, label, ignore in zip(boxes, record.labels.tolist(), record.ignore.tolist(), strict=True):
        item = add(root, "object")
        add(item, "name", class_names[label])
        add(item, "difficult", int(ignore))
        corners = add(item, "bndbox")
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            add(corners, tag, exact.text(value))
    ElementTree.indent(root)
    return ElementTree.ElementTree(root)


def _check_class_names(categories: Categories) -> None:
    for name in categories.names:
        if not name.isprintable() or name != name.strip():
            raise DataError(f"class {brief(name)}: XML does not keep this name; rename the class")


def _by_file(splits: Mapping[str, DetectionDataset]) -> dict[str, tuple[Record, DetectionDataset]]:
    """The image files of all splits, each with its record and a dataset that has it.

    Raises:
        DataError: an image has different boxes in two splits or entries; a VOC dataset has one annotation per image.
    """
    found: dict[str, tuple[Record, DetectionDataset]] = {}
    for split, dataset in splits.items():
        for file, record in zip(dataset.records.files, dataset.records, strict=True):
            known = found.setdefault(file, (record, dataset))
            if _objects(*known) == _objects(record, dataset):
                continue
            if known[1] is dataset:
                raise DataError(
                    f"{file}: split {split} lists this image twice with different boxes; merge the entries"
                )
            raise DataError(
                f"{file}: split {split} has other boxes for this image than another split; convert the splits one by "
                "one with --data.split"
            )
    return found


def _objects(record: Record, dataset: DetectionDataset) -> tuple[object, ...]:
    names = [dataset.categories.names[label] for label in record.labels.tolist()]
    return record.boxes.tobytes(), record.ignore.tobytes(), names


def _notes(splits: Mapping[str, DetectionDataset], categories: Categories, renamed: int) -> list[str]:
    fractional = sum(int((dataset.records.boxes % 1 != 0).any(axis=1).sum()) for dataset in splits.values())
    used = {
        dataset.categories.names[label]
        for dataset in splits.values()
        for label in np.unique(dataset.records.labels).tolist()
    }
    return [
        *note(renamed, "images renamed: VOC has one folder for all, and an XML file per stem"),
        *note(
            fractional,
            "boxes have fractions of pixels, written with decimals; PASCAL's own files have integers",
        ),
        *note(areas_of_their_own(splits), "areas of objects not kept: the boxes' own are used"),
        *(["category ids not kept: VOC has names only"] if has_own_ids(categories) else []),
        *note(len(set(categories.names) - used), "classes without boxes not kept: VOC lists no classes"),
    ]
