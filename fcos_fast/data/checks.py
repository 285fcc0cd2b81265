"""What may be wrong with a data set, and how it is said.

A fault that spoils one box is counted in a :class:`Report`, the box is left out or cut to the image, and
loading goes on; under ``strict`` the first such fault is refused. A fault that spoils more than a box raises
:class:`DataError`.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .dataset import Record

EXAMPLES = 3
"""So many faults of a kind are named; the others are counted."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""File formats that are read, in small letters."""

MAX_PIXELS = 178_956_970
"""Largest image in pixels that is read unless another number is given; Pillow's own limit."""

ROUNDING = 0.05
"""In pixels. Files round coordinates, YOLO's to a millionth of the image; boxes that reach out by less are in order."""

_NO = {"", "false", "f", "no", "n", "off", "none", "null", "unspecified"}
_YES = {"true", "t", "yes", "y", "on"}


class DataError(ValueError):
    """A data set that cannot be used: one line with the file, the value and the remedy."""

    def __init__(self, message: str):
        # A DataLoader raises a worker's error anew with a traceback for its message; keep the line itself.
        super().__init__(message.rstrip().rsplit("DataError: ", 1)[-1])


@dataclass
class Report:
    """What loading found, fault by fault.

    Attributes:
        source: the data set's name for people, such as ``bccd, split trainval``.
        strict: raise :class:`DataError` at the first fault.
        images, empty_images, boxes: how many there are after loading; an image without a box is in order.
        ignored: so many of the boxes are VOC's difficult objects or COCO's crowds.
        faults: for each kind of fault the number of times it occurred.
        examples: for each kind of fault its first occurrences, ``file: value``.
    """

    source: str
    strict: bool = False
    images: int = 0
    empty_images: int = 0
    boxes: int = 0
    ignored: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, fault: str, file: str | Path, value: str) -> None:
        """Count one occurrence of ``fault``, or raise it under ``strict``."""
        if self.strict:
            raise DataError(f"{file}: {fault}: {value}; correct the file or load without strict")
        self.faults[fault] = self.faults.get(fault, 0) + 1
        examples = self.examples.setdefault(fault, [])
        if len(examples) < EXAMPLES:
            examples.append(f"{file}: {value}")

    def count(self, records: Sequence[Record]) -> None:
        """Count what loading returns."""
        self.images = len(records)
        self.empty_images = sum(len(record.boxes) == 0 for record in records)
        self.boxes = sum(len(record.boxes) for record in records)
        self.ignored = sum(int(record.ignore.sum()) for record in records)

    def __str__(self) -> str:
        ignored = f" ({self.ignored} difficult or crowds, ignored)" if self.ignored else ""
        text = f"{self.source}: {self.images} images ({self.empty_images} without a box), {self.boxes} boxes{ignored}."
        for fault, count in self.faults.items():
            more = f" and {count - EXAMPLES} more" if count > EXAMPLES else ""
            text += f" {fault}: {count} ({'; '.join(self.examples[fault])}{more})."
        return text


def brief(value: object) -> str:
    """``repr`` of what a file says, which may be huge, in one short line."""
    shortener = reprlib.Repr()
    shortener.maxlevel = 2
    shortener.maxstring = shortener.maxother = 120
    return " ".join(shortener.repr(value).split())


def read_flag(value: object, name: str, file: str | Path, report: Report) -> bool:
    """What a file says by a flag such as ``difficult`` or ``iscrowd``.

    A boolean, the number 0 or 1, or a word such as yes, False, Unspecified or None, in any case; no value is false.
    Anything else is counted in ``report`` as a fault of ``name`` and is false.
    """
    text = str(value).strip().lower()
    try:
        number = float(text)
    except ValueError:
        number = None
    if text in _NO or number == 0:
        return False
    if text in _YES or number == 1:
        return True
    report.add(f"{name} that is neither yes nor no, taken as no", file, brief(value))
    return False


def check_boxes(
    boxes: np.ndarray, names: list[str], size: tuple[int, int], file: str | Path, report: Report
) -> tuple[np.ndarray, np.ndarray]:
    """Leave out boxes that cannot be used, cut the others to the image, and report both.

    Args:
        boxes: (N, 4) float64, xyxy in pixels.
        names: class name of each box, for the report.
        size: (width, height) of the image in pixels.
        file: where the boxes come from, for the report.
        report: counts the faults.

    Returns:
        The usable boxes (M, 4) float32 inside the image, and their rows in ``boxes`` (M,).
    """
    with np.errstate(invalid="ignore", over="ignore"):
        boxes = boxes.astype(np.float32)  # first, because two numbers may become one
        finite = np.isfinite(boxes).all(axis=1)
        has_area = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
        cut = np.clip(boxes, 0, np.array([*size, *size], dtype=np.float32))
        inside = (cut[:, 2:] > cut[:, :2]).all(axis=1)
        was_cut = (np.abs(cut - boxes) > ROUNDING).any(axis=1)
    for i in np.flatnonzero(~finite | ~has_area | ~inside | was_cut):
        if not finite[i]:
            fault = "box with a NaN or infinite coordinate, left out"
        elif not has_area[i]:
            fault = "box without an area, left out"
        elif not inside[i]:
            fault = "box outside the image, left out"
        else:
            fault = "box partly outside the image, cut to it"
        corners = ", ".join(f"{v:g}" for v in boxes[i])
        report.add(fault, file, f"{names[i]} [{corners}] in {size[0]}x{size[1]}")
    rows = np.flatnonzero(finite & has_area & inside)
    return cut[rows], rows
