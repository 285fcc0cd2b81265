"""The content of a COCO file in columns: parsed, and every entry checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .checks import DataError, Report, brief, read_flag
from .text_files import read_json

LISTS = ("images", "annotations", "categories")
LARGEST_AREA = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Content:
    """I images and the A annotations that have a box.

    Attributes:
        ids: I image ids.
        names: I file names.
        sizes: (I, 2) int64, width and height in pixels.
        categories: category id -> its entry, in the order of the file.
        owner: (A,) int64, the index of each annotation's image.
        category_ids: (A,) int64, all of them listed.
        boxes: (A, 4) float64, xywh in pixels; may be NaN, infinite or outside the image.
        areas: (A,) float64, areas of the objects in pixels; NaN stands for that of the box.
        crowd: (A,) bool.
    """

    ids: Sequence[int | str]
    names: Sequence[str]
    sizes: np.ndarray
    categories: dict[int, dict[str, Any]]
    owner: np.ndarray
    category_ids: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray


def read_content(file: Path, report: Report) -> Content:
    """The content of a COCO file.

    A file that is not entirely regular is read again, entry by entry, to find and report what is wrong.

    Raises:
        DataError: an entry cannot be used.
    """
    from .coco_regular import read_regular  # imports msgspec, which only this format needs

    return read_regular(file) or _checked(_read_lists(file, report), file, report)


def _checked(lists: dict[str, list[dict[str, Any]]], file: Path, report: Report) -> Content:
    images = by_id(lists["images"], file, "image")
    annotations = boxed_annotations(lists["annotations"], images, file, report)
    categories = by_id(lists["categories"], file, "category")
    for annotation in annotations:
        number = annotation.get("category_id")
        if not isinstance(number, int) or number not in categories:
            raise DataError(
                f"{file}: annotations have the category id {brief(number)}, which is not listed; add the category"
            )
    position = {number: i for i, number in enumerate(images)}
    entries = images.values()
    return Content(
        ids=[entry["id"] for entry in entries],
        names=[entry["file_name"] for entry in entries],
        sizes=np.array([(int(e["width"]), int(e["height"])) for e in entries], dtype=np.int64),
        categories=categories,
        owner=np.array([position[a["image_id"]] for a in annotations], dtype=np.int64),
        category_ids=np.array([a["category_id"] for a in annotations], dtype=np.int64),
        boxes=np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4),
        crowd=np.array([is_crowd(a, file, report) for a in annotations], dtype=bool),
        areas=np.array([area_of(a, file, report) for a in annotations], dtype=np.float64),
    )


def _read_lists(file: Path, report: Report) -> dict[str, list[dict[str, Any]]]:
    """The lists of a COCO file; each contains objects only."""
    content = read_json(file, report)
    for key in LISTS:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DataError(
                f"{file}: has no list {key!r}; a COCO file has images, annotations and categories"
            )
        for entry in content[key]:
            if not isinstance(entry, dict):
                raise DataError(f"{file}: {key} contains {brief(entry)}; expected only objects")
    if not content["images"]:
        raise DataError(f"{file}: lists no images; add some")
    return content


def _is_length(value: object) -> bool:
    return isinstance(value, (int, float)) and 1 <= value < 2**31


def _is_number(value: object) -> bool:
    """Whether a float can represent it. Infinity and NaN are floats too: Python's JSON may contain them."""
    return type(value) is float or (type(value) is int and abs(value) < 2**1000)


def _is_box(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


_WANTED: dict[str, dict[str, tuple[Callable[[Any], bool], str]]] = {
    "image": {
        "id": (lambda v: isinstance(v, (int, str)), "a number or a string"),
        "file_name": (lambda v: isinstance(v, str), "a string"),
        "width": (_is_length, "a number of pixels"),
        "height": (_is_length, "a number of pixels"),
    },
    "category": {
        "id": (lambda v: isinstance(v, int) and abs(v) < 2**53, "an integer"),
        "name": (lambda v: isinstance(v, str), "a string"),
    },
}
"""Required keys of an image and of a category -> the check of the value, and its description."""


def by_id(entries: Sequence[dict[str, Any]], file: Path, kind: str) -> dict[Any, dict[str, Any]]:
    """The images or categories of a file by their id, each with all required keys."""
    entry_of: dict[Any, dict[str, Any]] = {}
    for entry in entries:
        for key, (accepts, expected) in _WANTED[kind].items():
            if key not in entry:
                raise DataError(f"{file}: {kind} {entry.get('id', '?')} has no {key!r}; add it")
            if not accepts(entry[key]):
                raise DataError(
                    f"{file}: {kind} {entry.get('id', '?')} has {key} {brief(entry[key])}; expected {expected}"
                )
        if entry["id"] in entry_of:
            raise DataError(f"{file}: {kind} id {entry['id']} occurs more than once; make each unique")
        entry_of[entry["id"]] = entry
    return entry_of


def boxed_annotations(
    annotations: Sequence[dict[str, Any]], images: dict[Any, dict[str, Any]], file: Path, report: Report
) -> list[dict[str, Any]]:
    """The annotations that have a box. Every annotation must belong to a listed image."""
    seen = set()
    boxed = []
    for annotation in annotations:
        number, image = annotation.get("id"), annotation.get("image_id")
        if isinstance(number, (int, str)):
            if number in seen:
                raise DataError(f"{file}: annotation id {number} occurs more than once; make each unique")
            seen.add(number)
        if not isinstance(image, (int, str)) or image not in images:
            raise DataError(
                f"{file}: annotation {brief(number)} is for image {brief(image)}, which is not listed; add the "
                "image or remove the annotation"
            )
        if _is_box(annotation.get("bbox")):
            boxed.append(annotation)
        else:
            fault = "box that is not four numbers, skipped"
            report.add(fault, _where(annotation, file), brief(annotation.get("bbox")))
    return boxed


def is_crowd(annotation: dict[str, Any], file: Path, report: Report) -> bool:
    """Whether an annotation is a crowd; an invalid flag is counted in ``report``."""
    return read_flag(annotation.get("iscrowd"), "iscrowd", _where(annotation, file), report)


def area_of(annotation: dict[str, Any], file: Path, report: Report) -> float:
    """The area of an object; NaN means that of its box."""
    area = annotation.get("area")
    if area is None:
        return math.nan
    if _is_number(area) and 0 <= area <= LARGEST_AREA:
        return float(area)
    fault = "area that is not a number of pixels, replaced by the box's"
    report.add(fault, _where(annotation, file), brief(area))
    return math.nan


def _where(annotation: dict[str, Any], file: Path) -> str:
    return f"{file}, annotation {annotation.get('id')}"
