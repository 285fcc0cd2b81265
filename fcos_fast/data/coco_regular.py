"""COCO files without faults, parsed into columns.

msgspec checks types while it parses and skips what is not read, such as segmentations. Annotations become arrays by the
thousand, so that a file of a million needs little more memory than its text.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from .coco_content import LARGEST_AREA, Content, by_id
from .text_files import read_bytes

_AT_ONCE = 10_000
_ID = msgspec.Meta(ge=-(2**63), le=2**63 - 1)
_Length = Annotated[float, msgspec.Meta(ge=1, lt=2**31)]


class _Image(msgspec.Struct, gc=False):
    id: int | str
    file_name: str
    width: _Length
    height: _Length


class _Annotation(msgspec.Struct, gc=False):
    id: Annotated[int, _ID]
    image_id: int | str
    category_id: Annotated[int, _ID]
    bbox: tuple[float, float, float, float]
    area: Annotated[float, msgspec.Meta(ge=0, le=LARGEST_AREA)] | None = None
    iscrowd: Literal[0, 1] | None = None


class _File(msgspec.Struct):
    images: Annotated[list[_Image], msgspec.Meta(min_length=1)]
    annotations: list[msgspec.Raw]
    categories: list[dict[str, Any]]


def read_regular(file: Path) -> Content | None:
    """The content of a COCO file; None if anything in it needs a closer look, see :func:`.coco_content.read_content`.

    Raises:
        DataError: the file cannot be read, or a category has not all required keys.
    """
    data = read_bytes(file)
    if not _is_utf8(data):  # msgspec does not look into strings that it skips
        return None
    try:
        return _content(msgspec.json.decode(data, type=_File), file)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, KeyError):
        return None


def _is_utf8(data: bytes) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(data), 2**20):
            decoder.decode(data[start : start + 2**20])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _content(parsed: _File, file: Path) -> Content | None:
    position = {image.id: i for i, image in enumerate(parsed.images)}
    categories = by_id(parsed.categories, file, "category")
    count = len(parsed.annotations)
    ids = np.empty(count, dtype=np.int64)
    content = Content(
        ids=list(position),
        names=[image.file_name for image in parsed.images],
        sizes=np.array([(image.width, image.height) for image in parsed.images]).astype(np.int64),
        categories=categories,
        owner=np.empty(count, dtype=np.int64),
        category_ids=np.empty(count, dtype=np.int64),
        boxes=np.empty((count, 4)),
        areas=np.empty(count),
        crowd=np.empty(count, dtype=bool),
    )
    for rows, chunk in _annotations(parsed.annotations):
        ids[rows] = [a.id for a in chunk]
        content.owner[rows] = [position[a.image_id] for a in chunk]
        content.category_ids[rows] = [a.category_id for a in chunk]
        corners = chain.from_iterable(a.bbox for a in chunk)
        content.boxes[rows] = np.fromiter(corners, np.float64, 4 * len(chunk)).reshape(-1, 4)
        content.areas[rows] = [math.nan if a.area is None else a.area for a in chunk]
        content.crowd[rows] = [a.iscrowd == 1 for a in chunk]
    unique = len(position) == len(parsed.images) and bool((np.diff(np.sort(ids)) > 0).all())
    listed = np.isin(content.category_ids, list(categories)).all()
    return content if unique and listed else None


def _annotations(encoded: list[msgspec.Raw]) -> Iterator[tuple[slice, list[_Annotation]]]:
    """Rows and their annotations, some at a time."""
    decode = msgspec.json.Decoder(_Annotation).decode
    for start in range(0, len(encoded), _AT_ONCE):
        rows = slice(start, start + _AT_ONCE)
        yield rows, [decode(annotation) for annotation in encoded[rows]]
