"""YOLO txt: a ``data.yaml`` that names classes and splits, and a text file of boxes beside every picture.

A row is ``class cx cy width height``, relative to the picture's size, or ``class x1 y1 x2 y2 x3 y3 ...``, a polygon,
whose bounding box is taken. The labels of ``.../images/a/b.jpg`` are ``.../labels/a/b.txt``, as Ultralytics has it; a
picture without that file, or with an empty one, has no box.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .categories import Categories
from .checks import IMAGE_SUFFIXES, DataError, Report, check_boxes, image_size
from .dataset import DetectionDataset, Record

_ALIASES = {"valid": "val", "validation": "val"}
_SPLITS = ("train", "val", "test")

LARGEST = 2.0
"""Coordinates are parts of the picture's size, 0 to 1, or a little beyond; greater ones must be pixels."""


def is_yolo(root: Path) -> bool:
    """Whether ``root`` holds a yaml file that names classes and splits."""
    return _find_yaml(root) is not None


def load_yolo(
    root: str | Path, split: str | None = None, categories: Categories | None = None, strict: bool = False
) -> DetectionDataset:
    """Read one split of a YOLO data set.

    Args:
        root: folder of the ``data.yaml``, with ``names`` and, for each split, a folder of pictures, several, or a text
            file that lists pictures; relative to ``path`` or to the folder of the file.
        split: ``train``, ``val`` or ``test``; None where the file names only one.
        categories: the classes, where they are known, as for validation; they are found by name, and a box of another
            class is refused. None takes those of the file.
        strict: refuse boxes that would otherwise be left out or cut.

    Raises:
        DataError: the data set cannot be used; one line with the file, the value and the remedy.
    """
    root = Path(root)
    found = _find_yaml(root)
    if found is None:
        raise DataError(f"{root}: has no data.yaml with names and train or val; a YOLO data set has one")
    file, content = found
    names = _names(content["names"], file)
    try:
        categories = categories or Categories(tuple(names))
    except ValueError as error:
        raise DataError(f"{file}: {error}") from None
    pictures = list(_pictures(file, content, split))
    if not pictures:
        suffixes = ", ".join(IMAGE_SUFFIXES)
        raise DataError(f"{file}: split {split} has no picture ({suffixes}); add some")
    report = Report(source=root.name if split is None else f"{root.name}, split {split}", strict=strict)
    records = [_record(path, names, categories, report) for path in pictures]
    report.images = len(records)
    report.empty_images = sum(len(record.boxes) == 0 for record in records)
    report.boxes = sum(len(record.boxes) for record in records)
    return DetectionDataset(records, categories, report)


def _find_yaml(root: Path) -> tuple[Path, dict[str, Any]] | None:
    import yaml

    for path in sorted([*root.glob("*.yaml"), *root.glob("*.yml")], key=lambda path: path.stem != "data"):
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            if path.stem == "data":
                raise DataError(f"{path}: is not valid yaml ({error}); correct it") from None
            continue
        if isinstance(content, dict) and "names" in content and content.keys() & set(_SPLITS):
            return path, content
    return None


def _names(names: Any, file: Path) -> list[str]:
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names:
        raise DataError(f"{file}: names is {names!r}; expected a list, or numbers from 0 on with their names")
    return [str(name) for name in names]


def _pictures(file: Path, content: dict[str, Any], split: str | None) -> Iterator[Path]:
    named = [name for name in _SPLITS if content.get(name)]
    if split is None:
        if len(named) > 1:
            raise DataError(f"{file}: has several splits; choose one of {', '.join(named)}")
        split = named[0]
    split = _ALIASES.get(split, split)
    if split not in named:
        raise DataError(
            f"{file}: there is no split {split}; choose one of this data set's: {', '.join(named)}"
        )
    entries = content[split] if isinstance(content[split], list) else [content[split]]
    for entry in entries:
        place = _place(file, str(content.get("path") or ""), str(entry))
        if place.is_file():
            lines = (line.strip() for line in place.read_text(encoding="utf-8").splitlines())
            yield from (_listed(place, line, file) for line in lines if line)
        else:
            yield from sorted(p for p in place.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)


def _place(file: Path, path: str, entry: str) -> Path:
    """Where an entry of the yaml leads: exporters mean different folders by a relative path."""
    inside = entry
    while inside.startswith("../"):  # Roboflow's ../train/images lies beside the file
        inside = inside.removeprefix("../")
    places = [file.parent / path / entry, file.parent / entry, file.parent / inside]
    for place in places:
        if place.exists():
            return place
    looked = ", ".join(str(place) for place in dict.fromkeys(places))
    raise DataError(f"{file}: {entry} is at none of {looked}; correct the path")


def _listed(listing: Path, line: str, file: Path) -> Path:
    for folder in (listing.parent, file.parent):
        if (folder / line).is_file():
            return folder / line
    raise DataError(f"{listing}: there is no picture {line}; correct the path or leave it out")


def _label_file(picture: Path) -> Path:
    """The last folder ``images`` of the path is ``labels`` instead; without one, the text lies beside the picture."""
    parts = list(picture.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _record(picture: Path, names: list[str], categories: Categories, report: Report) -> Record:
    size = image_size(picture)
    file = _label_file(picture)
    classes, boxes = _rows(file, len(names)) if file.is_file() else ([], [])
    own_names = [names[i] for i in classes]
    try:
        labels = np.array([categories.label_of(name) for name in own_names], dtype=np.int64)
    except ValueError as error:
        raise DataError(f"{file}: {error}; correct the class or train with it") from None
    pixels = np.array(boxes, dtype=np.float64).reshape(-1, 4) * np.array([*size, *size])
    kept, rows = check_boxes(pixels, own_names, size, file, report)
    return Record(picture.name, size, kept, labels[rows], np.zeros(len(rows), dtype=bool), picture)


def _rows(file: Path, num_classes: int) -> tuple[list[int], list[list[float]]]:
    """Classes and relative xyxy boxes of a text file."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{file}: is no text; write it again") from None
    classes, boxes = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            kind, *values = map(float, line.split())
        except ValueError:
            raise DataError(f"{file}:{number}: is {line.strip()!r}; expected numbers alone") from None
        if not (kind.is_integer() and 0 <= kind < num_classes):
            raise DataError(
                f"{file}:{number}: the class is {line.split()[0]}; data.yaml names 0 to {num_classes - 1}"
            )
        classes.append(int(kind))
        boxes.append(_box(values, f"{file}:{number}"))
    return classes, boxes


def _box(values: list[float], where: str) -> list[float]:
    """Relative xyxy of the numbers behind a class."""
    if any(abs(value) > LARGEST for value in values):
        numbers = " ".join(f"{value:g}" for value in values)
        raise DataError(
            f"{where}: the numbers are {numbers}; expected parts of the picture's size, not pixels"
        )
    if len(values) == 4:
        cx, cy, width, height = values
        return [cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2]
    if len(values) >= 6 and len(values) % 2 == 0:
        xs, ys = values[0::2], values[1::2]
        return [min(xs), min(ys), max(xs), max(ys)]
    raise DataError(
        f"{where}: has {len(values)} numbers after the class; expected 4 (cx cy width height) or the pairs of a polygon"
    )
