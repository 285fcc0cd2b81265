"""COCO: one JSON file of images, categories and annotations per split.

Boxes are xywh in continuous pixel coordinates. Crowds (``iscrowd``) are ignored: training skips them, and evaluation
treats them as COCO's does. Segmentations are not read; the ``area`` of an annotation decides whether evaluation counts
the object as small, medium or large. Images are not decoded, because the file contains their sizes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from .categories import Categories
from .checks import MAX_PIXELS, DataError, Report, brief, check_boxes
from .coco_content import LISTS, Content, read_content
from .dataset import DetectionDataset
from .files import LEFTOVER, files_in, is_hidden, is_leftover
from .jpeg import count_truncated
from .paths import PathFinder
from .records import Records, Strings, packed_ids
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
    file = file_of_split(root, split)
    if root.is_file():
        root = root.parent.parent if root.parent.name == "annotations" else root.parent
    report = Report.of_split(root, split, strict)
    content = read_content(file, report)
    categories, label_of_id = _labels(content, categories, file)
    paths = _find_images(root, file, content.names, PathFinder(root, allow_outside), report)
    _check_pixels(content.sizes, paths, max_pixels, file)
    count_truncated(paths.values(), report)
    records = _records(content, categories, label_of_id, paths, file, report)
    return DetectionDataset(records, categories, report, max_pixels)


def coco_splits(root: Path) -> list[str]:
    """The names of the splits: those of their files."""
    return list(_splits(root) or _loose_files(root))


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


def file_of_split(root: Path, split: str | None) -> Path:
    """The COCO file of a split; None if there is only one.

    Raises:
        DataError: there is no such split.
    """
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


def _labels(content: Content, categories: Categories | None, file: Path) -> tuple[Categories, dict[int, int]]:
    """The classes, and the map from category id to label."""
    entry_of = content.categories
    listed = list(entry_of.values())
    used = set(np.unique(content.category_ids).tolist())
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
    root: Path, file: Path, names: Sequence[str], finder: PathFinder, report: Report
) -> dict[int, Path]:
    """Index of an image -> its file. Leftovers of operating systems are omitted. All images are in the folder that
    contains the first."""
    kept = dict(_without_leftovers(names, file, report))
    if not kept:
        raise DataError(f"{file}: lists no images; add some")
    folder = _image_folder(root, file, next(iter(kept.values())), finder)
    found = {i: finder.find([(folder, name)], file) for i, name in kept.items()}
    missing = [kept[i] for i, place in found.items() if place is None]
    if missing:
        raise DataError(
            f"{file}: {len(missing)} of {len(kept)} images are not in {folder}, the first is {brief(missing[0])}; "
            "add them, or remove them from the file"
        )
    return {i: place[1] for i, place in found.items() if place is not None}


def _without_leftovers(names: Sequence[str], file: Path, report: Report) -> Iterator[tuple[int, str]]:
    for i, name in enumerate(names):
        if is_leftover(name.replace("\\", "/")):
            report.add(LEFTOVER, file, brief(name))
        else:
            yield i, name


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


def _check_pixels(sizes: np.ndarray, paths: dict[int, Path], max_pixels: int, file: Path) -> None:
    for i in np.flatnonzero(sizes.prod(axis=1) > max_pixels).tolist():
        if i in paths:
            width, height = sizes[i]
            raise DataError(
                f"{file}: {paths[i].name} has {width}x{height} pixels, more than {max_pixels}; raise "
                "max_pixels (--data.max_pixels) or remove the image"
            )


def _records(
    content: Content,
    categories: Categories,
    label_of_id: dict[int, int],
    paths: dict[int, Path],
    file: Path,
    report: Report,
) -> Records:
    """The images that have a path, with their valid boxes."""
    labels = _mapped(content.category_ids, label_of_id)
    boxes, areas = _boxes_and_areas(content)
    order = np.argsort(content.owner, kind="stable")
    offsets = np.searchsorted(content.owner[order], np.arange(len(content.ids) + 1))
    valid = _are_valid(boxes, content.sizes[content.owner])
    kept = np.zeros(len(content.ids), dtype=bool)
    kept[list(paths)] = True
    for i in np.unique(content.owner[~valid]).tolist():
        if not kept[i]:
            continue
        rows = order[offsets[i] : offsets[i + 1]]
        names = [categories.names[label] for label in labels[rows]]
        size = (int(content.sizes[i, 0]), int(content.sizes[i, 1]))
        clipped, good = check_boxes(boxes[rows], names, size, f"{file}, {content.names[i]}", report)
        boxes[rows[good]] = clipped
        valid[rows[good]] = True
    rows = order[(valid & kept[content.owner])[order]]
    counts = np.bincount(content.owner[rows], minlength=len(content.ids))[kept]
    return Records(
        names=Strings(content.names[i] for i in paths),
        sizes=content.sizes[kept],
        offsets=np.concatenate(([0], np.cumsum(counts))),
        boxes=boxes[rows].astype(np.float32),
        labels=labels[rows],
        ignore=content.crowd[rows],
        areas=areas[rows],
        files=Strings(map(str, paths.values())),
        image_ids=packed_ids([content.ids[i] for i in paths]),
    )


def _mapped(category_ids: np.ndarray, label_of_id: dict[int, int]) -> np.ndarray:
    """(A,) int64 labels."""
    ids, index = np.unique(category_ids, return_inverse=True)
    return np.array([label_of_id[i] for i in ids.tolist()], dtype=np.int64)[index]


def _boxes_and_areas(content: Content) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (A, 4) float64 xyxy and areas (A,) float32 of the objects."""
    xywh = content.boxes
    with np.errstate(invalid="ignore", over="ignore"):  # check_boxes counts infinities and NaN
        boxes = np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), axis=1)
        areas = np.where(np.isnan(content.areas), xywh[:, 2] * xywh[:, 3], content.areas)
        return boxes, areas.astype(np.float32)


def _are_valid(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """(A,) bool, whether a box has an area and lies inside its image: then :func:`check_boxes` need not look."""
    with np.errstate(over="ignore"):
        single: np.ndarray = boxes.astype(np.float32)
    return np.asarray(
        (single[:, 2:] > single[:, :2]).all(axis=1)
        & (single[:, :2] >= 0).all(axis=1)
        & (single[:, 2:] <= sizes.astype(np.float32)).all(axis=1)
    )
