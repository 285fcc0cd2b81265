"""Checks of a dataset and how their results are reported.

An invalid box is skipped, or clipped to the image, and counted in a :class:`Report`; with ``strict`` it raises
:class:`DataError`. Anything that invalidates more than a box always raises :class:`DataError`.
"""

from __future__ import annotations

import reprlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from .records import Records

EXAMPLES = 3
"""Number of occurrences of a fault that a report names; it counts the others."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""Suffixes of the image files that are read, in lower case."""

MAX_PIXELS = 178_956_970
"""Default for the largest number of pixels of an image; the same as Pillow's."""

ROUNDING = 0.05
"""Pixels by which a box may exceed the image. Files round coordinates, YOLO's to a millionth of the image."""

_NO = {"", "false", "f", "no", "n", "off", "none", "null", "unspecified"}
_YES = {"true", "t", "yes", "y", "on"}


class DataError(ValueError):
    """A dataset that cannot be used. The message is one line with the file, the value and the remedy."""

    def __init__(self, message: str):
        # A DataLoader re-raises a worker's error with the traceback in its message; keep only the line itself.
        super().__init__(message.rstrip().rsplit("DataError: ", 1)[-1])


@dataclass
class Report:
    """What loading a dataset found.

    Attributes:
        source: name of the dataset for messages, such as ``bccd, split trainval``.
        strict: raise :class:`DataError` at the first fault.
        images: number of images.
        empty_images: number of images without boxes, which are valid.
        boxes: number of boxes.
        ignored: number of boxes that are VOC's difficult objects or COCO's crowds.
        faults: fault -> number of occurrences.
        examples: fault -> its first occurrences, each ``file: value``.
        unrotated: image files whose annotation states the upright size with its sides exchanged, as for an image
            without its EXIF rotation.
    """

    source: str
    strict: bool = False
    images: int = 0
    empty_images: int = 0
    boxes: int = 0
    ignored: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)
    unrotated: list[str] = field(default_factory=list)

    @classmethod
    def of_split(cls, root: Path, split: str | None, strict: bool) -> Report:
        """An empty report for a split of the dataset in ``root``."""
        return cls(root.name if split is None else f"{root.name}, split {split}", strict)

    def add(self, fault: str, file: str | Path, value: str) -> None:
        """Count an occurrence of ``fault``; with ``strict`` raise :class:`DataError`."""
        if self.strict:
            raise DataError(f"{file}: {fault}: {value}; correct the file, or load without strict")
        self.faults[fault] = self.faults.get(fault, 0) + 1
        examples = self.examples.setdefault(fault, [])
        if len(examples) < EXAMPLES:
            examples.append(f"{file}: {value}")

    def count(self, records: Records) -> None:
        """Count the images and boxes that were loaded."""
        self.images = len(records)
        self.empty_images = int((np.diff(records.offsets) == 0).sum())
        self.boxes = len(records.boxes)
        self.ignored = int(records.ignore.sum())

    def __str__(self) -> str:
        ignored = f" ({self.ignored} difficult or crowds, ignored)" if self.ignored else ""
        text = f"{self.source}: {self.images} images ({self.empty_images} without boxes), {self.boxes} boxes{ignored}."
        for fault, count in self.faults.items():
            more = f" and {count - EXAMPLES} more" if count > EXAMPLES else ""
            text += f" {fault}: {count} ({'; '.join(self.examples[fault])}{more})."
        return text


def brief(value: object) -> str:
    """``repr`` of a value from a file, shortened to one line."""
    shortener = reprlib.Repr()
    shortener.maxlevel = 2
    shortener.maxstring = shortener.maxother = 120
    return " ".join(shortener.repr(value).split())


def read_flag(value: object, name: str, file: str | Path, report: Report) -> bool:
    """The value of a flag such as ``difficult`` or ``iscrowd``.

    A flag is a boolean, 0 or 1, or a word such as yes, False, Unspecified or None in any case; an empty one is false.
    Anything else is counted in ``report`` as a fault of ``name`` and is false.
    """
    text = str(value).strip().lower()
    number: float | None
    try:
        number = float(text)
    except ValueError:
        number = None
    if text in _NO or number == 0:
        return False
    if text in _YES or number == 1:
        return True
    report.add(f"{name} that is neither yes nor no, read as no", file, brief(value))
    return False


def check_boxes(
    boxes: np.ndarray, names: list[str], size: tuple[int, int], file: str | Path, report: Report
) -> tuple[np.ndarray, np.ndarray]:
    """Drop invalid boxes and clip the others to the image.

    Args:
        boxes: (N, 4) float64, xyxy in pixels.
        names: class name of each box, for the report.
        size: (width, height) of the image in pixels.
        file: the boxes' file, for the report.
        report: counts dropped and clipped boxes.

    Returns:
        The valid boxes (M, 4) float32, clipped to the image, and their indices in ``boxes`` (M,).
    """
    with np.errstate(invalid="ignore", over="ignore"):
        boxes = boxes.astype(np.float32)  # first, because two different numbers may become equal
        finite = np.all(np.isfinite(boxes), axis=1)
        has_area = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
        clipped = np.clip(boxes, 0, np.array([*size, *size], dtype=np.float32))
        inside = np.all(clipped[:, 2:] > clipped[:, :2], axis=1)
        was_clipped = np.any(np.abs(clipped - boxes) > ROUNDING, axis=1)
    for i in np.flatnonzero(~finite | ~has_area | ~inside | was_clipped):
        if not finite[i]:
            fault = "box with a NaN or infinite coordinate, skipped"
        elif not has_area[i]:
            fault = "box without area, skipped"
        elif not inside[i]:
            fault = "box outside the image, skipped"
        else:
            fault = "box partly outside the image, clipped"
        corners = ", ".join(f"{v:g}" for v in boxes[i])
        report.add(fault, file, f"{names[i]} [{corners}] in {size[0]}x{size[1]}")
    rows = np.flatnonzero(finite & has_area & inside)
    return clipped[rows], rows
