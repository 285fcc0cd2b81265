"""Truncated JPEG files: found without decoding, and completed so that they decode."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from .checks import DataError, Report
from .files import open_regular

SLOW = 0.001
"""Seconds per file from which on the disk is slow."""

_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]", re.DOTALL)  # of a segment with a length, or of the end


def completed(file: BinaryIO) -> BinaryIO:
    """An open JPEG file with the end marker appended if it is not the last thing; any other file unchanged.

    A decoder stops at the first end marker, so a second one after appended data has no effect.
    """
    return io.BytesIO(file.read() + _JPEG_END) if _lacks_end(file) else file


def is_truncated(path: str | Path) -> bool:
    """Whether a file is a JPEG without an end marker. Nothing is decoded.

    Raises:
        DataError: the file cannot be read or is not a regular file.
    """
    try:
        with open_regular(path) as file:
            return _lacks_end(file) and not _has_end(file.read())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); replace or remove the image") from None


def count_truncated(paths: Iterable[Path], report: Report) -> None:
    """Count the truncated JPEGs among ``paths`` in the report."""
    for path in _truncated(list(paths)):
        report.add("truncated JPEG, the missing part is gray", path, "save it again")


def _truncated(paths: Sequence[Path]) -> Iterator[Path]:
    """The truncated JPEGs, in order. Threads wait for a slow disk; for a fast one they would only compete for Python's
    lock and cost several times as much."""
    chunks = iter([paths[i : i + 64] for i in range(0, len(paths), 64)])
    for chunk in chunks:
        started = time.perf_counter()
        yield from filter(is_truncated, chunk)
        if time.perf_counter() - started > SLOW * len(chunk):
            break
    with ThreadPoolExecutor(16) as threads:
        for found in threads.map(lambda chunk: list(filter(is_truncated, chunk)), chunks):
            yield from found


def _lacks_end(file: BinaryIO) -> bool:
    """Whether an open JPEG does not end with its end marker: it is truncated, or something follows the image."""
    lacks_end = False
    if file.read(len(_JPEG_START)) == _JPEG_START:
        file.seek(-len(_JPEG_END), io.SEEK_END)
        lacks_end = file.read() != _JPEG_END
    file.seek(0)
    return lacks_end


def _has_end(jpeg: bytes) -> bool:
    """Whether the end marker is anywhere. Segments are skipped: a thumbnail in the metadata has its own end marker,
    and phones append videos to images."""
    position = len(_JPEG_END)
    while marker := _MARKER.search(jpeg, position):
        position = marker.end()
        if marker[0] == _JPEG_END:
            return True
        position += int.from_bytes(jpeg[position : position + 2], "big")  # the segment's length
    return False
