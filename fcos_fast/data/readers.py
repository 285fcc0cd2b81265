"""Which reader reads which dataset format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .categories import Categories
from .checks import MAX_PIXELS, DataError
from .coco import is_coco, is_loose_coco, load_coco
from .dataset import DetectionDataset
from .voc import is_loose_voc, is_voc, load_voc
from .yolo import is_yolo, load_yolo


@dataclass(frozen=True)
class Reader:
    """A dataset format.

    Attributes:
        name: of the dataset format.
        looks_for: what a folder of this dataset format holds, for the error message.
        recognises: whether a folder, or a file, has this dataset format.
        load: ``(root, split, categories, strict, allow_outside, max_pixels) -> DetectionDataset``.
    """

    name: str
    looks_for: str
    recognises: Callable[[Path], bool]
    load: Callable[[Path, str | None, Categories | None, bool, bool, int], DetectionDataset]


READERS = (
    Reader("VOC", "folders Annotations and JPEGImages", is_voc, load_voc),
    Reader(
        "COCO",
        "annotations/*.json, or _annotations.coco.json in the folder of a split",
        is_coco,
        load_coco,
    ),
    Reader("YOLO", "a data.yaml with names and train or val", is_yolo, load_yolo),
    Reader("VOC", "annotations/*.xml and images, or xml files beside their images", is_loose_voc, load_voc),
    Reader("COCO", "a COCO file of any name beside a folder of images", is_loose_coco, load_coco),
)
"""Every dataset format that is read; the first that recognises a folder reads it."""


def load_dataset(
    root: str | Path,
    split: str | None = None,
    categories: Categories | None = None,
    strict: bool = False,
    allow_outside: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> DetectionDataset:
    """Read a data set of any format in :data:`READERS`.

    Args:
        root: the data set's folder, its ``data.yaml`` (YOLO) or one of its JSON files (COCO); ``~`` is the home folder.
        split: name of the part to read; None reads all.
        categories: the classes, where they are known, as for validation; None takes those that occur.
        strict: refuse boxes that would otherwise be left out or cut.
        allow_outside: follow paths in COCO and YOLO files that lead outside the data set's folder. A data set from
            elsewhere could name any image of this machine, so that they are refused otherwise. Links are followed
            anyway.
        max_pixels: a larger image is refused, because a small file can hold more pixels than memory does.

    Raises:
        DataError: no such folder, no known dataset format, or the data set cannot be used.
    """
    root = Path(root).expanduser()
    if not root.exists():
        raise DataError(f"{root}: there is no such folder; give the folder of a data set")
    for reader in READERS:
        if reader.recognises(root):
            return reader.load(root, split, categories, strict, allow_outside, max_pixels)
    wanted = "; ".join(f"{reader.name}: {reader.looks_for}" for reader in READERS)
    if not root.is_dir():
        raise DataError(f"{root}: is no folder, data.yaml or JSON file of a data set ({wanted})")
    present = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
    raise DataError(f"{root}: unrecognized dataset format ({wanted}); it holds {present}")
