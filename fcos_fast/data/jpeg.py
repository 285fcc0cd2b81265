"""JPEG files that lack their end: found without decoding, and completed so that they decode."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from .checks import DataError, Report
from .files import open_regular

_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]", re.DOTALL)  # of a segment with a length, or the end


def _lacks_end(file: BinaryIO) -> bool:
    """Whether an open JPEG does not end as it should: it is cut short, or something follows it."""
    lacks_end = False
    if file.read(len(_JPEG_START)) == _JPEG_START:
        file.seek(-len(_JPEG_END), io.SEEK_END)
        lacks_end = file.read() != _JPEG_END
    file.seek(0)
    return lacks_end


def completed(file: BinaryIO) -> BinaryIO:
    # A decoder stops at the first end, so that the second one does nothing where something follows the image.
    return io.BytesIO(file.read() + _JPEG_END) if _lacks_end(file) else file


def is_cut_short(path: str | Path) -> bool:
    """Whether a file is a JPEG whose last bytes are missing. Nothing is decoded.

    Raises:
        DataError: it cannot be read or is not a regular file.
    """
    try:
        with open_regular(path) as file:
            return _lacks_end(file) and not _has_end(file.read())
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); replace it or take it out of the data set"
        ) from None


def _has_end(jpeg: bytes) -> bool:
    """Whether a JPEG's end comes anywhere: phones append videos, and thumbnails in the metadata have ends too."""
    position = len(_JPEG_END)
    while marker := _MARKER.search(jpeg, position):
        position = marker.end()
        if marker[0] == _JPEG_END:
            return True
        position += int.from_bytes(jpeg[position : position + 2], "big")  # the segment's length
    return False


def count_cut_short(paths: Iterable[Path], report: Report) -> None:
    """Count the JPEGs among ``paths`` that are cut short."""
    paths = list(paths)
    chunks = [paths[i : i + 64] for i in range(0, len(paths), 64)]
    with ThreadPoolExecutor(16) as threads:  # waiting for a disk, not for a processor
        for found in threads.map(lambda chunk: list(filter(is_cut_short, chunk)), chunks):
            for path in found:
                report.add("JPEG that is cut short, read as far as it goes", path, "save it again")
