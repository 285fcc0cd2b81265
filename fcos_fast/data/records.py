"""The images and boxes of a dataset, packed: a few arrays instead of several Python objects per image.

Workers are forked from the process that loaded the dataset. They share its memory until they write to it, and counting
the references of an object writes to it: half a million objects would be copied to every worker, arrays are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

import numpy as np


@dataclass(frozen=True)
class Record:
    """One image and its ground truth.

    Arrays are NumPy's because datasets are sent to worker processes, where every tensor would need a file handle.

    Attributes:
        name: file name of the image.
        size: (width, height) in pixels, upright.
        boxes: (N, 4) float32, xyxy in pixels, inside the image and not empty.
        labels: (N,) int64, 0..C-1.
        ignore: (N,) bool; training skips these boxes, and evaluation counts them neither as missed nor as false
            positives (VOC's ``difficult``, COCO's crowds).
        image: the file, or the image itself, uint8 (3, H, W) RGB.
        areas: (N,) float32, areas of the objects in pixels, which decide whether evaluation counts them as small,
            medium or large; None stands for the areas of the boxes, which :class:`Records` fills in.
        image_id: id in a COCO file, which its results use; None is the image's index in the dataset.
    """

    name: str
    size: tuple[int, int]
    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    image: Path | np.ndarray
    areas: np.ndarray | None = None
    image_id: int | str | None = None


class Strings(Sequence[str]):
    """A sequence of strings in one block of bytes."""

    def __init__(self, strings: Iterable[str]):
        encoded = [string.encode("utf-8", "surrogatepass") for string in strings]
        self._bytes = b"".join(encoded)
        self._offsets = _offsets(map(len, encoded))

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]
        return self._bytes[self._offsets[index] : self._offsets[index + 1]].decode("utf-8", "surrogatepass")


@dataclass(frozen=True, eq=False)
class Records(Sequence[Record]):
    """The records of I images with M boxes. ``records[i]`` makes a :class:`Record` whose arrays are views.

    Attributes:
        names: I file names.
        sizes: (I, 2) int64, width and height.
        offsets: (I + 1,) int64; the boxes of image i are ``boxes[offsets[i] : offsets[i + 1]]``.
        boxes, labels, ignore, areas: (M, 4) float32, (M,) int64, (M,) bool, (M,) float32, as in :class:`Record`.
        files: I paths; empty if the image is in memory.
        pixels: index -> image in memory.
        image_ids: I ids, None if none has one. An array if all are integers.
    """

    names: Strings
    sizes: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    ignore: np.ndarray
    areas: np.ndarray
    files: Strings
    pixels: Mapping[int, np.ndarray] = field(default_factory=dict)
    image_ids: Sequence[int | str | None] | np.ndarray | None = None

    @classmethod
    def of(cls, records: Iterable[Record]) -> Records:
        """Pack ``records``.

        Raises:
            ValueError: the arrays of a record differ in length.
        """
        records = list(records)
        for record in records:
            arrays = (record.labels, record.ignore, record.boxes if record.areas is None else record.areas)
            if any(len(array) != len(record.boxes) for array in arrays):
                raise ValueError(
                    f"record {record.name}: has {len(record.boxes)} boxes, but labels, ignore and areas of length "
                    f"{', '.join(str(len(array)) for array in arrays)}; give one of each per box"
                )
        return cls(
            names=Strings(record.name for record in records),
            sizes=np.array([record.size for record in records], dtype=np.int64).reshape(-1, 2),
            offsets=_offsets(len(record.boxes) for record in records),
            boxes=_packed((record.boxes for record in records), np.zeros((0, 4), np.float32)),
            labels=_packed((record.labels for record in records), np.zeros(0, np.int64)),
            ignore=_packed((record.ignore for record in records), np.zeros(0, bool)),
            areas=_packed(map(_areas, records), np.zeros(0, np.float32)),
            files=Strings("" if isinstance(r.image, np.ndarray) else str(r.image) for r in records),
            pixels={i: r.image for i, r in enumerate(records) if isinstance(r.image, np.ndarray)},
            image_ids=packed_ids([record.image_id for record in records]),
        )

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        index = range(len(self))[index]
        rows = slice(self.offsets[index], self.offsets[index + 1])
        width, height = self.sizes[index].tolist()
        return Record(
            self.names[index],
            (width, height),
            self.boxes[rows],
            self.labels[rows],
            self.ignore[rows],
            self.pixels[index] if index in self.pixels else Path(self.files[index]),
            self.areas[rows],
            self.image_id(index),
        )

    def image_id(self, index: int) -> int | str | None:
        """The id of an image in its COCO file."""
        if isinstance(self.image_ids, np.ndarray):
            return int(self.image_ids[index])
        return None if self.image_ids is None else self.image_ids[index]


def packed_ids(ids: Sequence[int | str | None]) -> Sequence[int | str | None] | np.ndarray | None:
    """``ids`` as an int64 array if they allow it; None if all are None."""
    if all(number is None for number in ids):
        return None
    if all(type(number) is int and abs(number) < 2**63 for number in ids):
        return np.array(ids, dtype=np.int64)
    return ids


def _offsets(lengths: Iterable[int]) -> np.ndarray:
    return np.cumsum(np.fromiter([0, *lengths], dtype=np.int64))


def _packed(arrays: Iterable[np.ndarray], none: np.ndarray) -> np.ndarray:
    """The concatenated arrays in the dtype of ``none``, which has no rows."""
    return np.concatenate([none, *arrays]).astype(none.dtype, copy=False)


def _areas(record: Record) -> np.ndarray:
    if record.areas is not None:
        return record.areas
    sides: np.ndarray = record.boxes[:, 2:] - record.boxes[:, :2]
    return sides.prod(axis=1)
