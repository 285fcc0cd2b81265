"""What may be wrong with a data set, and how it is said.

A fault that spoils one box is counted in a :class:`Report`, the box is left out or cut to the image, and
loading goes on; under ``strict`` the first such fault is refused. A fault that spoils more than a box raises
:class:`DataError`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

EXAMPLES = 3
"""So many faults of a kind are named; the others are counted."""

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
"""File formats that are read, in small letters."""

_QUARTER_TURNS = (5, 6, 7, 8)  # of EXIF's orientations
_REPLACE = "replace it or take it out of the data set"


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
        faults: for each kind of fault the number of times it occurred.
        examples: for each kind of fault its first occurrences, ``file: value``.
    """

    source: str
    strict: bool = False
    images: int = 0
    empty_images: int = 0
    boxes: int = 0
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

    def __str__(self) -> str:
        text = f"{self.source}: {self.images} images ({self.empty_images} without a box), {self.boxes} boxes."
        for fault, count in self.faults.items():
            more = f" and {count - EXAMPLES} more" if count > EXAMPLES else ""
            text += f" {fault}: {count} ({'; '.join(self.examples[fault])}{more})."
        return text


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
        was_cut = (cut != boxes).any(axis=1)
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


@contextmanager
def open_image(path: str | Path) -> Iterator[Image.Image]:
    """Open an image file, of which only the header is read as yet.

    Raises:
        DataError: the file is missing, empty, cut short or no image, noticed now or while it is decoded.
    """
    try:
        with Image.open(path) as image:
            yield image
    except UnidentifiedImageError:
        what = "is no image" if Path(path).stat().st_size else "is an empty file"
        raise DataError(f"{path}: {what}; {_REPLACE}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read ({error}); {_REPLACE}") from None


def image_size(path: str | Path) -> tuple[int, int]:
    """Read (width, height) of the upright image from its header alone; errors as :func:`open_image`."""
    with open_image(path) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation) in _QUARTER_TURNS
        return image.size[::-1] if turned else image.size
