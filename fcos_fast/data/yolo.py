"""YOLO: a ``data.yaml`` that names classes and splits, and a text file of boxes per image.

A line is ``class cx cy width height`` relative to the image's size, or a polygon ``class x1 y1 x2 y2 x3 y3 ...``, whose
bounding box is used. If ``data.yaml`` has ``kpt_shape``, the numbers after the box are keypoints, which are not read.
The labels of ``.../images/a/b.jpg`` are ``.../labels/a/b.txt``, as in Ultralytics. An image whose label file is missing
or empty has no boxes; a split without any label file is an error.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .categories import Categories
from .checks import IMAGE_SUFFIXES, MAX_PIXELS, DataError, Report, brief, check_boxes
from .dataset import DetectionDataset
from .files import files_in
from .images import image_size
from .jpeg import count_truncated
from .paths import PathFinder
from .records import Record
from .text_files import read_list, read_text, read_yaml

SPLIT_ALIASES = {"valid": "val", "validation": "val"}
SPLITS = ("train", "val", "test")
_YAML_SUFFIXES = (".yaml", ".yml")
_NULL = ("", "~", "null")

LARGEST = 2.0
"""Coordinates are fractions of the image's size, 0 to 1 or slightly more; larger ones must be pixels."""


def is_yolo(root: Path) -> bool:
    """Whether ``root`` is or contains a YAML file that names classes and splits."""
    return find_yaml(root) is not None


def yolo_splits(root: Path) -> list[str]:
    """The splits that the YAML file names."""
    file = find_yaml(root)
    return [] if file is None else _named_splits(read_yaml(file), file)


def load_yolo(
    root: str | Path,
    split: str | None = None,
    categories: Categories | None = None,
    strict: bool = False,
    allow_outside: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> DetectionDataset:
    """Read one split of a YOLO dataset.

    Args:
        root: the ``data.yaml`` or its folder. The file contains ``names``, which are always read as strings, and for
            each split a folder of images, a list of folders, or a text file that lists images. Paths are relative to
            ``path`` or to the folder of the file.
        split: ``train``, ``val`` or ``test``; None if the file names only one.
        categories, strict, allow_outside, max_pixels: see :func:`fcos_fast.data.load_dataset`.

    Raises:
        DataError: the dataset cannot be used.
    """
    root = Path(root).expanduser()
    file = find_yaml(root)
    if file is None:
        raise DataError(f"{root}: has no data.yaml with names and train or val; a YOLO dataset has one")
    report = Report.of_split(root, split, strict)
    content = read_yaml(file, report)
    names = _names(content, file)
    keypoints = keypoint_shape(content, file)
    try:
        categories = categories or Categories(tuple(names))
    except ValueError as error:
        raise DataError(f"{file}: {error}") from None
    finder = PathFinder(file.parent, allow_outside)
    images = list(_images(file, content, split, finder, report))
    if not images:
        suffixes = ", ".join(IMAGE_SUFFIXES)
        raise DataError(f"{file}: split {split} has no images ({suffixes}); add some")
    paths = [label_file(image, file.parent) for image in images]
    labels = [finder.present(path) for path in paths]
    if not any(labels):
        raise DataError(
            f"{file}: none of the {len(images)} images of split {split} has a label file; the first would be "
            f"{paths[0]}. Add the label files (an empty one if the image is empty)"
        )
    count_truncated(images, report)
    records = [
        _record(image, label, names, math.prod(keypoints or (0,)), categories, report, max_pixels)
        for image, label in zip(images, labels, strict=True)
    ]
    return DetectionDataset(records, categories, report, max_pixels)


def find_yaml(root: Path) -> Path | None:
    """The YAML file that names classes and splits; None if there is none."""
    if root.is_dir():
        candidates = sorted(files_in(root, _YAML_SUFFIXES), key=lambda path: path.stem != "data")
    else:
        candidates = [root] if root.suffix.lower() in _YAML_SUFFIXES else []
    for path in candidates:
        try:
            content = read_yaml(path)
        except DataError:
            if path.stem == "data" or path == root:
                raise
            continue
        if isinstance(content, dict) and "names" in content and content.keys() & set(SPLITS):
            return path
    return None


def _names(content: dict[str, Any], file: Path) -> list[str]:
    names = content["names"]
    numbers = [str(i) for i in range(len(names))]
    if isinstance(names, dict) and set(names) == set(numbers):
        names = [names[number] for number in numbers]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise DataError(
            f"{file}: names is {brief(names)}; expected a list, or the numbers from 0 with their names"
        )
    if "" in names:
        raise DataError(f"{file}: class {names.index('')} has no name; add it")
    count = content.get("nc") or str(len(names))
    if count != str(len(names)):
        raise DataError(f"{file}: nc is {brief(count)}, but names has {len(names)}; correct one of them")
    return names


def keypoint_shape(content: dict[str, Any], file: Path) -> tuple[int, int] | None:
    """The numbers of keypoints of an object and of values of a keypoint; None for a dataset without keypoints."""
    shape = content.get("kpt_shape") or "null"
    if isinstance(shape, str) and shape.lower() in _NULL:
        return None
    try:
        number, values = map(int, shape if isinstance(shape, list) else ())
    except (TypeError, ValueError):
        number = values = 0
    if number < 1 or values not in (2, 3):
        raise DataError(
            f"{file}: kpt_shape is {brief(shape)}; expected the number of keypoints, and 2 or 3 values of each"
        )
    return number, values


def _images(
    file: Path, content: dict[str, Any], split: str | None, finder: PathFinder, report: Report
) -> Iterator[Path]:
    named = _named_splits(content, file)
    if split is None:
        if len(named) > 1:
            raise DataError(f"{file}: has several splits; choose one of {', '.join(named)}")
        split = named[0]
    split = SPLIT_ALIASES.get(split, split)
    if split not in named:
        raise DataError(f"{file}: unknown split {split}; this dataset has {', '.join(named)}")
    base = file.parent / os.path.expanduser("".join(_paths(content.get("path"))[:1]))
    for entry in _paths(content.get(split)):
        place = _place(file, base, entry, finder)
        if place.is_dir():
            yield from files_in(place, IMAGE_SUFFIXES, recursive=True)
        else:
            yield from _listed(place, (place.parent, base, file.parent), finder, report)


def _named_splits(content: dict[str, Any], file: Path) -> list[str]:
    named = [name for name in SPLITS if _paths(content.get(name))]
    if not named:
        raise DataError(f"{file}: names no folder of images; add one as train or val")
    return named


def _paths(value: Any) -> list[str]:
    """The paths of an entry of the YAML file; none if it is null."""
    values = value if isinstance(value, list) else [value]
    return [text for text in values if isinstance(text, str) and text.lower() not in _NULL]


def _place(file: Path, base: Path, entry: str, finder: PathFinder) -> Path:
    """The file or folder of an entry of the YAML file. Exporters write paths relative to different folders."""
    folder = file.parent
    inside = entry.replace("\\", "/")
    while inside.startswith("../"):  # Roboflow's ../train/images is beside the file
        inside = inside.removeprefix("../")
    places = list(dict.fromkeys([(base, entry), (folder, entry), (folder, inside)]))
    found = finder.find(places, file)
    if found is None:
        looked = ", ".join(str(where / path) for where, path in places)
        raise DataError(f"{file}: {brief(entry)} is at none of {looked}; correct the path")
    return found[1]


def _listed(listing: Path, folders: Sequence[Path], finder: PathFinder, report: Report) -> Iterator[Path]:
    """The images that a text file lists, relative to the first of ``folders`` that has them."""
    for line in read_list(listing, report):
        found = finder.find([(folder, line) for folder in folders], listing)
        if found is None:
            raise DataError(f"{listing}: image {brief(line)} is missing; correct the path or remove the line")
        yield found[1]


def label_file(image: Path, root: Path = Path()) -> Path:
    """The path with its last folder ``images`` replaced by ``labels``; without one, the text file beside the image.

    A dataset may itself lie in a folder ``images``: only folders below its ``root`` count for images in it.
    """
    parts = list(image.parts)
    path, top = os.path.abspath(image), os.path.abspath(root)
    inside = Path(path).relative_to(top).parts if Path(path).is_relative_to(top) else parts
    for i in range(len(parts) - 2, len(parts) - len(inside) - 1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _record(
    image: Path,
    labels_file: Path | None,
    names: list[str],
    keypoints: int,
    categories: Categories,
    report: Report,
    max_pixels: int,
) -> Record:
    size = image_size(image, max_pixels)
    classes, boxes = ([], []) if labels_file is None else _rows(labels_file, len(names), keypoints, report)
    own_names = [names[i] for i in classes]
    try:
        labels = np.array([categories.label_of(name) for name in own_names], dtype=np.int64)
    except ValueError as error:
        raise DataError(f"{labels_file}: {error}; correct the class or train with it") from None
    pixels = np.array(boxes, dtype=np.float64).reshape(-1, 4) * np.array([*size, *size])
    kept, rows = check_boxes(pixels, own_names, size, labels_file or image, report)
    return Record(image.name, size, kept, labels[rows], np.zeros(len(rows), dtype=bool), image)


def _rows(
    file: Path, num_classes: int, keypoints: int, report: Report
) -> tuple[list[int], list[list[float]]]:
    """Classes and relative xyxy boxes of a text file, whose lines may end with ``keypoints`` more numbers."""
    lines = read_text(file, report).split("\n")
    classes, boxes = [], []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            kind, *values = map(float, line.split())
        except ValueError:
            raise DataError(f"{file}:{number}: is {brief(line.strip())}; expected only numbers") from None
        if not (kind.is_integer() and 0 <= kind < num_classes):
            raise DataError(
                f"{file}:{number}: has class {line.split()[0]}; data.yaml names 0 to {num_classes - 1}"
            )
        classes.append(int(kind))
        if keypoints and len(values) == 4 + keypoints:
            del values[4:]
        elif keypoints and len(values) != 4:
            raise DataError(
                f"{file}:{number}: has {len(values)} numbers after the class; expected a box of 4, and {keypoints} "
                "for the keypoints (kpt_shape in data.yaml)"
            )
        boxes.append(_box(values, f"{file}:{number}"))
    return classes, boxes


def _box(values: list[float], where: str) -> list[float]:
    """The relative xyxy box of the numbers after the class."""
    if any(LARGEST < abs(value) < math.inf for value in values):  # check_boxes counts infinities
        numbers = " ".join(f"{value:g}" for value in values)
        raise DataError(
            f"{where}: the numbers are {numbers}; expected fractions of the image's size, not pixels"
        )
    if len(values) == 4:
        cx, cy, width, height = values
        return [cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2]
    if len(values) >= 6 and len(values) % 2 == 0:
        xs, ys = values[0::2], values[1::2]
        return [min(xs), min(ys), max(xs), max(ys)]
    raise DataError(
        f"{where}: has {len(values)} numbers after the class; expected 4 (cx cy width height) "
        "or the corners of a polygon"
    )
