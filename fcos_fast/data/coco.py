"""COCO json: one file of images, categories and annotations per split.

Boxes are xywh in continuous pixel coordinates. Crowds (``iscrowd``) are boxes to be ignored: they are not trained on,
and evaluation treats them as COCO's does. Segmentations are not looked at, but for the ``area`` that goes with them: by
it the evaluation tells small, medium and large objects apart. Pictures are not opened; their sizes stand in the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from .categories import Categories
from .checks import DataError, Report, check_boxes
from .dataset import DetectionDataset, Record

ROBOFLOW = "_annotations.coco.json"
_OTHER_TASKS = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")


def is_coco(root: Path) -> bool:
    """Whether ``root`` looks like a folder of COCO files."""
    return bool(_splits(root))


def load_coco(
    root: str | Path, split: str | None = None, categories: Categories | None = None, strict: bool = False
) -> DetectionDataset:
    """Read one split of a folder of COCO files.

    Args:
        root: folder that holds ``annotations/<split>.json``, where ``instances_`` may stand before the split's name,
            beside a folder of pictures (``<split>``, ``images/<split>`` or ``images``); or ``<split>/``
            ``_annotations.coco.json`` with the pictures beside it, as Roboflow writes it.
        split: name of the split; None where there is only one.
        categories: the classes, where they are known, as for validation; they are found by name, and a box of another
            class is refused. None takes those that the file lists, in the order of their ids.
        strict: refuse boxes that would otherwise be left out or cut.

    Raises:
        DataError: the data set cannot be used; one line with the file, the value and the remedy.
    """
    root = Path(root)
    file = _file_of_split(root, split)
    content = _read(file)
    report = Report(source=root.name if split is None else f"{root.name}, split {split}", strict=strict)
    images = _by_id(content["images"], file, "image")
    annotations = _checked(content["annotations"], images, file)
    categories, label_of_id = _labels(content["categories"], categories, annotations, file)
    folder = _picture_folder(root, file, list(images.values()))
    _check_pictures(folder, file, images)

    records = _records(images, annotations, categories, label_of_id, folder, file, report)
    report.images = len(records)
    report.empty_images = sum(len(record.boxes) == 0 for record in records)
    report.boxes = sum(len(record.boxes) for record in records)
    return DetectionDataset(records, categories, report)


def _splits(root: Path) -> dict[str, Path]:
    """Name of a split to its file."""
    splits = {path.parent.name: path for path in sorted(root.glob(f"*/{ROBOFLOW}"))}
    if (root / ROBOFLOW).is_file():
        splits[root.name] = root / ROBOFLOW
    for path in sorted((root / "annotations").glob("*.json")):
        if not path.name.startswith(_OTHER_TASKS):
            splits[path.stem.removeprefix("instances_")] = path
    return splits


def _file_of_split(root: Path, split: str | None) -> Path:
    splits = _splits(root)
    if not splits:
        raise DataError(
            f"{root}: has no annotations/*.json and no {ROBOFLOW}; a COCO data set has one per split"
        )
    known = ", ".join(splits)
    if split is None:
        if len(splits) > 1:
            raise DataError(f"{root}: has several splits; choose one of {known}")
        return next(iter(splits.values()))
    name = split.removeprefix("instances_")
    if name in splits:
        return splits[name]
    alike = [path for other, path in splits.items() if other.startswith(name)]  # train for train2017
    if len(alike) != 1:
        raise DataError(f"{root}: there is no split {split}; choose one of this data set's: {known}")
    return alike[0]


def _read(file: Path) -> dict[str, list[dict[str, Any]]]:
    try:
        content = json.loads(file.read_bytes())
    except ValueError as error:
        raise DataError(f"{file}: is not valid json ({error}); write it again") from None
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(
                f"{file}: has no list {key!r}; a COCO file has images, annotations and categories"
            )
        for entry in content[key]:
            if not isinstance(entry, dict):
                raise DataError(f"{file}: {key} holds {entry!r}; expected objects alone")
    if not content["images"]:
        raise DataError(f"{file}: lists no image; add some")
    return content


def _is_length(value: object) -> bool:
    return isinstance(value, (int, float)) and value >= 1


_WANTED: dict[str, dict[str, tuple[Callable[[Any], bool], str]]] = {
    "image": {
        "id": (lambda v: isinstance(v, (int, str)), "a number or a string"),
        "file_name": (lambda v: isinstance(v, str), "a string"),
        "width": (_is_length, "a number of pixels"),
        "height": (_is_length, "a number of pixels"),
    },
    "category": {
        "id": (lambda v: isinstance(v, int), "a whole number"),
        "name": (lambda v: isinstance(v, str), "a string"),
    },
}
"""What an image and a category must have: key to what its value must fulfil, and that in words."""


def _by_id(entries: Sequence[dict[str, Any]], file: Path, kind: str) -> dict[Any, dict[str, Any]]:
    by_id = {}
    for entry in entries:
        for key, (accepts, expected) in _WANTED[kind].items():
            if key not in entry:
                raise DataError(f"{file}: {kind} {entry.get('id', '?')} has no {key!r}; add it")
            if not accepts(entry[key]):
                raise DataError(
                    f"{file}: {kind} {entry.get('id', '?')} has the {key} {entry[key]!r}; expected {expected}"
                )
        if entry["id"] in by_id:
            raise DataError(f"{file}: {kind} id {entry['id']} occurs more than once; make each unique")
        by_id[entry["id"]] = entry
    return by_id


def _checked(
    annotations: Sequence[dict[str, Any]], images: dict[Any, dict[str, Any]], file: Path
) -> list[dict[str, Any]]:
    """The annotations that have a box, each of them of an image that there is."""
    seen = set()
    boxed = []
    for annotation in annotations:
        number, image, area = (annotation.get(key) for key in ("id", "image_id", "area"))
        if isinstance(number, (int, str)):
            if number in seen:
                raise DataError(f"{file}: annotation id {number} occurs more than once; make each unique")
            seen.add(number)
        if not isinstance(image, (int, str)) or image not in images:
            raise DataError(
                f"{file}: annotation {number} is of image {image!r}, which is not listed; add the image or take the "
                "annotation out"
            )
        if not isinstance(area, (int, float, type(None))):
            raise DataError(f"{file}: annotation {number} has the area {area!r}; expected a number of pixels")
        box = annotation.get("bbox")
        if not (isinstance(box, list) and len(box) == 4 and all(isinstance(v, (int, float)) for v in box)):
            raise DataError(
                f"{file}: annotation {number} has the bbox {box!r}; expected [x, y, width, height]"
            )
        boxed.append(annotation)
    return boxed


def _labels(
    listed: Sequence[dict[str, Any]],
    categories: Categories | None,
    annotations: Sequence[dict[str, Any]],
    file: Path,
) -> tuple[Categories, dict[Any, int]]:
    """The classes, and the file's category id to label."""
    by_id = _by_id(listed, file, "category")
    for annotation in annotations:
        number = annotation.get("category_id")
        if not isinstance(number, int) or number not in by_id:
            raise DataError(
                f"{file}: annotations have the category id {number!r}, which is not listed; list it"
            )
    used = {annotation["category_id"] for annotation in annotations}
    if categories is None:
        # Roboflow lists a name for all classes together as a class of its own.
        parents = {entry.get("supercategory") for entry in listed}
        kept = [
            by_id[i] for i in sorted(by_id) if i in used or by_id[i]["name"] not in parents or len(by_id) == 1
        ]
        try:
            categories = Categories(
                tuple(entry["name"] for entry in kept), tuple(entry["id"] for entry in kept)
            )
        except ValueError as error:
            raise DataError(f"{file}: {error}") from None
    label_of_id = {}
    for number, entry in by_id.items():
        if entry["name"] in categories.names:
            label_of_id[number] = categories.label_of(entry["name"])
        elif number in used:
            known = ", ".join(categories.names)
            raise DataError(
                f"{file}: has boxes of the class {entry['name']!r}, which is none of {known}; correct the name or "
                "train with this class"
            )
    return _with_ids_of_file(categories, label_of_id), label_of_id


def _with_ids_of_file(categories: Categories, label_of_id: dict[int, int]) -> Categories:
    """The classes under the ids of this file, in which its results are written; one that it does not list gets an id
    that it does not use."""
    ids = {label: number for number, label in label_of_id.items()}
    unused = count(max(label_of_id, default=0) + 1)
    return Categories(
        categories.names,
        tuple(ids[label] if label in ids else next(unused) for label in range(len(categories))),
    )


def _picture_folder(root: Path, file: Path, images: Sequence[dict[str, Any]]) -> Path:
    """The folder in which the first picture lies."""
    split = file.parent.name if file.name == ROBOFLOW else file.stem.removeprefix("instances_")
    first = images[0]["file_name"]
    folders = [file.parent] if file.name == ROBOFLOW else []
    folders += [root / split, root / "images" / split, root / split / "images", root / "images", root]
    for folder in folders:
        if (folder / first).is_file():
            return folder
    looked = ", ".join(str(folder) for folder in dict.fromkeys(folders))
    raise DataError(
        f"{file}: its first picture {first} is in none of {looked}; put the pictures into one of them"
    )


def _check_pictures(folder: Path, file: Path, images: dict[Any, dict[str, Any]]) -> None:
    names = [entry["file_name"] for entry in images.values()]
    present: dict[Path, set[str]] = {}  # one listing per folder instead of a look at each of 100,000 files
    missing = []
    for name in names:
        path = folder / name
        if path.parent not in present:
            present[path.parent] = {p.name for p in path.parent.iterdir()} if path.parent.is_dir() else set()
        if path.name not in present[path.parent]:
            missing.append(name)
    if missing:
        raise DataError(
            f"{file}: {len(missing)} of {len(names)} pictures are not in {folder}, the first is {missing[0]}; add them "
            "or take them out of the file"
        )


def _records(
    images: dict[Any, dict[str, Any]],
    annotations: Sequence[dict[str, Any]],
    categories: Categories,
    label_of_id: dict[Any, int],
    folder: Path,
    file: Path,
    report: Report,
) -> list[Record]:
    position = {number: i for i, number in enumerate(images)}
    owner = np.array([position[a["image_id"]] for a in annotations], dtype=np.int64)
    order = np.argsort(owner, kind="stable")
    xywh = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)[order]
    boxes = np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), axis=1)
    labels = np.array([label_of_id[a["category_id"]] for a in annotations], dtype=np.int64)[order]
    crowd = np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=bool)[order]
    of_box = xywh[:, 2] * xywh[:, 3]
    # None, as a file may say too, becomes NaN.
    given = np.array([a.get("area") for a in annotations], dtype=np.float64)[order]
    areas = np.where(np.isnan(given), of_box, given).astype(np.float32)
    ends = np.searchsorted(owner[order], np.arange(len(images)), side="right")

    records, begin = [], 0
    for entry, end in zip(images.values(), ends.tolist(), strict=True):
        size = (int(entry["width"]), int(entry["height"]))
        name = entry["file_name"]
        here = slice(begin, end)
        own, rows = _usable(boxes[here], labels[here], categories, size, f"{file}, {name}", report)
        records.append(
            Record(
                name,
                size,
                own,
                labels[here][rows],
                crowd[here][rows],
                folder / name,
                areas[here][rows],
                entry["id"],
            )
        )
        begin = end
    return records


def _usable(
    boxes: np.ndarray,
    labels: np.ndarray,
    categories: Categories,
    size: tuple[int, int],
    where: str,
    report: Report,
) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`check_boxes`, without the time that it takes where all is in order."""
    single = boxes.astype(np.float32)
    if (
        (single[:, 2:] > single[:, :2]).all()
        and (single[:, :2] >= 0).all()
        and (single[:, 2:] <= np.array(size, dtype=np.float32)).all()
    ):
        return single, np.arange(len(boxes))
    return check_boxes(boxes, [categories.names[label] for label in labels], size, where, report)
