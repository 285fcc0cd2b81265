"""COCO: one JSON file of images, categories and annotations per split.

Boxes are xywh in continuous pixel coordinates. Crowds (``iscrowd``) are ignored: training skips them, and evaluation
treats them as COCO's does. Segmentations are not read; the ``area`` of an annotation decides whether evaluation counts
the object as small, medium or large. Images are not decoded, because the file contains their sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from .categories import Categories
from .checks import MAX_PIXELS, DataError, Report, brief, check_boxes
from .coco_content import LISTS, area_of, boxed_annotations, by_id, is_crowd, read_content
from .dataset import DetectionDataset, Record
from .files import LEFTOVER, files_in, is_hidden, is_leftover
from .jpeg import count_truncated
from .paths import PathFinder
from .text_files import read_text

ROBOFLOW = "_annotations.coco.json"
_OTHER_TASKS = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")


def is_coco(root: Path) -> bool:
    """Whether ``root`` looks like a COCO file or a folder with the files of splits."""
    return bool(_splits(root))


def is_loose_coco(root: Path) -> bool:
    """Whether ``root`` contains a COCO file of any name."""
    return bool(_loose_files(root))


def load_coco(
    root: str | Path,
    split: str | None = None,
    categories: Categories | None = None,
    strict: bool = False,
    allow_outside: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> DetectionDataset:
    """Read one split of a folder of COCO files.

    Args:
        root: folder that contains one of the following, or the JSON file itself:
            ``annotations/<split>.json`` or ``annotations/instances_<split>.json``, and a folder of images (``<split>``,
            ``images/<split>``, ``images`` or ``data``);
            ``<split>/_annotations.coco.json`` with the images beside it (Roboflow);
            one COCO file of any name beside the folder of images (Label Studio's ``result.json``).
        split: name of the split; None if there is only one.
        categories, strict, allow_outside, max_pixels: see :func:`fcos_fast.data.load_dataset`.

    Raises:
        DataError: the dataset cannot be used.
    """
    root = Path(root).expanduser()
    file = _file_of_split(root, split)
    if root.is_file():
        root = root.parent.parent if root.parent.name == "annotations" else root.parent
    report = Report.of_split(root, split, strict)
    content = read_content(file, report)
    images = by_id(content["images"], file, "image")
    annotations = boxed_annotations(content["annotations"], images, file, report)
    categories, label_of_id = _labels(content["categories"], categories, annotations, file)
    paths = _find_images(root, file, images, PathFinder(root, allow_outside), report)
    _check_pixels(images, paths, max_pixels, file)
    count_truncated(paths.values(), report)
    records = _records(images, annotations, categories, label_of_id, paths, file, report)
    return DetectionDataset(records, categories, report, max_pixels)


def _splits(root: Path) -> dict[str, Path]:
    """Split -> its file."""
    if root.is_file():
        return {_name_of_split(root): root} if root.suffix.lower() == ".json" else {}
    files = [path for path in sorted(root.glob(f"*/{ROBOFLOW}")) if not is_hidden(path.parent.name)]
    if (root / ROBOFLOW).is_file():
        files.append(root / ROBOFLOW)
    if (root / "annotations").is_dir():
        files += [p for p in files_in(root / "annotations", [".json"]) if not p.name.startswith(_OTHER_TASKS)]
    return {_name_of_split(path): path for path in files}


def _loose_files(root: Path) -> dict[str, Path]:
    """Split -> its file, for COCO files of any name directly in ``root``."""
    files = files_in(root, [".json"]) if root.is_dir() else []
    return {_name_of_split(path): path for path in files if _has_lists(path)}


def _name_of_split(file: Path) -> str:
    return file.parent.name if file.name == ROBOFLOW else file.stem.removeprefix("instances_")


def _has_lists(file: Path) -> bool:
    """Whether the text of a file contains the keys of a COCO file; cheaper than parsing a large file."""
    try:
        text = read_text(file)
    except DataError:
        return False
    return all(f'"{key}"' in text for key in LISTS)


def _file_of_split(root: Path, split: str | None) -> Path:
    splits = _splits(root) or _loose_files(root)
    if not splits:
        raise DataError(
            f"{root}: has neither annotations/*.json nor {ROBOFLOW}; a COCO dataset has one per split"
        )
    known = ", ".join(splits)
    if split is None:
        if len(splits) > 1:
            raise DataError(f"{root}: has several splits; choose one of {known}")
        return next(iter(splits.values()))
    name = split.removeprefix("instances_")
    if name in splits:
        return splits[name]
    near = [path for other, path in splits.items() if other.startswith(name)]  # train for train2017
    if len(near) != 1:
        raise DataError(f"{root}: unknown split {split}; this dataset has {known}")
    return near[0]


def _labels(
    listed: Sequence[dict[str, Any]],
    categories: Categories | None,
    annotations: Sequence[dict[str, Any]],
    file: Path,
) -> tuple[Categories, dict[Any, int]]:
    """The classes, and the map from category id to label."""
    entry_of = by_id(listed, file, "category")
    for annotation in annotations:
        number = annotation.get("category_id")
        if not isinstance(number, int) or number not in entry_of:
            raise DataError(
                f"{file}: annotations have the category id {brief(number)}, which is not listed; add the category"
            )
    used = {annotation["category_id"] for annotation in annotations}
    if categories is None:
        kept = [
            entry_of[i] for i in sorted(entry_of) if i in used or not _is_roboflows_root(entry_of[i], listed)
        ]
        try:
            categories = Categories(
                tuple(entry["name"] for entry in kept), tuple(entry["id"] for entry in kept)
            )
        except ValueError as error:
            raise DataError(f"{file}: {error}") from None
    label_of_id = {}
    for number, entry in entry_of.items():
        if entry["name"] in categories.names:
            label_of_id[number] = categories.label_of(entry["name"])
        elif number in used:
            known = ", ".join(categories.names)
            raise DataError(
                f"{file}: has boxes of the unknown class {entry['name']!r}; known are {known}. Correct the name or "
                "train with this class"
            )
    return _with_ids_of_file(categories, label_of_id), label_of_id


def _with_ids_of_file(categories: Categories, label_of_id: dict[int, int]) -> Categories:
    """The classes with the category ids of this file, which its results use. A class that the file does not list gets
    an unused id."""
    ids = {label: number for number, label in label_of_id.items()}
    unused = count(max(label_of_id, default=0) + 1)
    return Categories(
        categories.names,
        tuple(ids[label] if label in ids else next(unused) for label in range(len(categories))),
    )


def _is_roboflows_root(category: dict[str, Any], listed: Sequence[dict[str, Any]]) -> bool:
    """Whether a category is the one that Roboflow lists first as the parent of all others; it has no boxes."""
    return (
        category["id"] == 0
        and category.get("supercategory") == "none"
        and any(other is not category and other.get("supercategory") == category["name"] for other in listed)
    )


def _find_images(
    root: Path, file: Path, images: dict[Any, dict[str, Any]], finder: PathFinder, report: Report
) -> dict[Any, Path]:
    """Image id -> file. All images are in the folder that contains the first."""
    names = _image_names(images, file, report)
    folder = _image_folder(root, file, next(iter(names.values())), finder)
    found = {number: finder.find([(folder, name)], file) for number, name in names.items()}
    missing = [names[number] for number, place in found.items() if place is None]
    if missing:
        raise DataError(
            f"{file}: {len(missing)} of {len(names)} images are not in {folder}, the first is {brief(missing[0])}; "
            "add them, or remove them from the file"
        )
    return {number: place[1] for number, place in found.items() if place is not None}


def _image_names(images: dict[Any, dict[str, Any]], file: Path, report: Report) -> dict[Any, str]:
    """Image id -> file name, without leftovers of operating systems."""
    names = {}
    for number, entry in images.items():
        name = entry["file_name"]
        if is_leftover(PurePath(name.replace("\\", "/"))):
            report.add(LEFTOVER, file, brief(name))
        else:
            names[number] = name
    if not names:
        raise DataError(f"{file}: lists no images; add some")
    return names


def _image_folder(root: Path, file: Path, first: str, finder: PathFinder) -> Path:
    """The folder of the ``first`` image."""
    split = _name_of_split(file)
    folders = [file.parent] if file.name == ROBOFLOW else []
    folders += [root / split, root / "images" / split, root / split / "images", root / "images"]
    folders = list(dict.fromkeys([*folders, root / "data", root, file.parent]))
    found = finder.find([(folder, first) for folder in folders], file)
    if found is None:
        looked = ", ".join(map(str, folders))
        raise DataError(
            f"{file}: its first image {brief(first)} is in none of {looked}; move the images to one of them"
        )
    return found[0]


def _check_pixels(
    images: dict[Any, dict[str, Any]], paths: dict[Any, Path], max_pixels: int, file: Path
) -> None:
    for number, path in paths.items():
        width, height = images[number]["width"], images[number]["height"]
        if width * height > max_pixels:
            raise DataError(
                f"{file}: {path.name} has {width}x{height} pixels, more than {max_pixels}; raise "
                "max_pixels (--data.max_pixels) or remove the image"
            )


def _records(
    images: dict[Any, dict[str, Any]],
    annotations: Sequence[dict[str, Any]],
    categories: Categories,
    label_of_id: dict[Any, int],
    paths: dict[Any, Path],
    file: Path,
    report: Report,
) -> list[Record]:
    labels = np.array([label_of_id[a["category_id"]] for a in annotations], dtype=np.int64)
    crowd = np.array([is_crowd(a, file, report) for a in annotations], dtype=bool)
    boxes, areas = _boxes_and_areas(annotations, file, report)
    records = []
    for (number, entry), own in zip(images.items(), _rows_by_image(images, annotations), strict=True):
        if number not in paths:
            continue
        name, size = entry["file_name"], (int(entry["width"]), int(entry["height"]))
        valid, rows = _valid_boxes(boxes[own], labels[own], categories, size, f"{file}, {name}", report)
        own = own[rows]
        records.append(
            Record(name, size, valid, labels[own], crowd[own], paths[number], areas[own], entry["id"])
        )
    return records


def _rows_by_image(
    images: dict[Any, dict[str, Any]], annotations: Sequence[dict[str, Any]]
) -> list[np.ndarray]:
    """The indices of each image's annotations, in the order of the file."""
    position = {number: i for i, number in enumerate(images)}
    owner = np.array([position[a["image_id"]] for a in annotations], dtype=np.int64)
    order = np.argsort(owner, kind="stable")
    return np.split(order, np.searchsorted(owner[order], np.arange(1, len(images))))


def _boxes_and_areas(
    annotations: Sequence[dict[str, Any]], file: Path, report: Report
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) float64 xyxy and areas (N,) float32 of the objects."""
    xywh = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)
    given = np.array([area_of(a, file, report) for a in annotations], dtype=np.float64)
    with np.errstate(invalid="ignore", over="ignore"):  # check_boxes counts infinities and NaN
        boxes = np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), axis=1)
        areas = np.where(np.isnan(given), xywh[:, 2] * xywh[:, 3], given).astype(np.float32)
    return boxes, areas


def _valid_boxes(
    boxes: np.ndarray,
    labels: np.ndarray,
    categories: Categories,
    size: tuple[int, int],
    where: str,
    report: Report,
) -> tuple[np.ndarray, np.ndarray]:
    """:func:`check_boxes`, with a fast path for valid boxes."""
    with np.errstate(over="ignore"):
        single = boxes.astype(np.float32)
    if (
        (single[:, 2:] > single[:, :2]).all()
        and (single[:, :2] >= 0).all()
        and (single[:, 2:] <= np.array(size, dtype=np.float32)).all()
    ):
        return single, np.arange(len(boxes))
    return check_boxes(boxes, [categories.names[label] for label in labels], size, where, report)
