"""The readers of all dataset formats, and the choice among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .categories import Categories
from .checks import MAX_PIXELS, DataError
from .coco import coco_splits, is_coco, is_loose_coco, load_coco
from .dataset import DetectionDataset
from .voc import is_loose_voc, is_voc, load_voc, voc_splits
from .yolo import is_yolo, load_yolo, yolo_splits


@dataclass(frozen=True)
class Reader:
    """A dataset format.

    Attributes:
        name: name of the format.
        looks_for: what a folder in this format contains, for the error message.
        recognizes: whether a folder or file is in this format.
        splits: the names of the splits of a folder or file; empty if it has none.
        load: ``(root, split, categories, strict, allow_outside, max_pixels) -> DetectionDataset``.
    """

    name: str
    looks_for: str
    recognizes: Callable[[Path], bool]
    splits: Callable[[Path], list[str]]
    load: Callable[[Path, str | None, Categories | None, bool, bool, int], DetectionDataset]


READERS = (
    Reader("VOC", "folders Annotations and JPEGImages", is_voc, voc_splits, load_voc),
    Reader(
        "COCO",
        "annotations/*.json, or _annotations.coco.json in the folder of a split",
        is_coco,
        coco_splits,
        load_coco,
    ),
    Reader("YOLO", "a data.yaml with names and train or val", is_yolo, yolo_splits, load_yolo),
    Reader(
        "VOC",
        "annotations/*.xml and images, or xml files beside their images",
        is_loose_voc,
        voc_splits,
        load_voc,
    ),
    Reader(
        "COCO", "a COCO file of any name beside a folder of images", is_loose_coco, coco_splits, load_coco
    ),
)
"""All dataset formats. The first that recognizes a folder reads it."""


def load_dataset(
    root: str | Path,
    split: str | None = None,
    categories: Categories | None = None,
    strict: bool = False,
    allow_outside: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> DetectionDataset:
    """Read a dataset of any format in :data:`READERS`.

    Args:
        root: folder of the dataset, its ``data.yaml`` (YOLO) or one of its JSON files (COCO); ``~`` is expanded.
        split: split to read; None reads all images, or the only split of a format that requires splits.
        categories: classes to use, such as those of training for a validation split. They are matched by name; a box
            of another class is an error. None uses the classes of the dataset: those that occur, sorted by name (VOC),
            those of the file in the order of their ids, without the root of Roboflow's classes (COCO), or those of
            ``data.yaml`` (YOLO).
        strict: raise an error for an invalid box (zero area, outside the image, NaN) instead of skipping or clipping
            it.
        allow_outside: follow paths in COCO and YOLO files that lead outside the dataset's folder. They are rejected by
            default because a downloaded dataset could name any image of this machine. Links are always followed. VOC
            files contain no paths.
        max_pixels: images with more pixels are rejected: a small file can decode to more than the memory.

    Raises:
        DataError: the folder does not exist, its format is not recognized, or the dataset cannot be used. The message
            is one line with the file, the value and the remedy.
    """
    reader, root = find_reader(root)
    return reader.load(root, split, categories, strict, allow_outside, max_pixels)


def dataset_splits(root: str | Path) -> list[str]:
    """The names of a dataset's splits; empty if it has none, and then ``load_dataset(root)`` reads all images.

    PASCAL VOC's lists of one class are not splits, and neither is ``trainval`` beside ``train`` and ``val``.

    Raises:
        DataError: as :func:`load_dataset`.
    """
    reader, root = find_reader(root)
    splits = reader.splits(root)
    return [name for name in splits if name != "trainval" or not {"train", "val"} <= set(splits)]


def find_reader(root: str | Path) -> tuple[Reader, Path]:
    """The reader that recognizes ``root``, and ``root`` with ``~`` expanded; errors as for :func:`load_dataset`."""
    root = Path(root).expanduser()
    if not root.exists():
        raise DataError(f"{root}: does not exist; give the folder of a dataset")
    for reader in READERS:
        if reader.recognizes(root):
            return reader, root
    wanted = "; ".join(f"{reader.name}: {reader.looks_for}" for reader in READERS)
    if not root.is_dir():
        raise DataError(f"{root}: is not the folder, data.yaml or JSON file of a dataset ({wanted})")
    present = ", ".join(sorted(path.name for path in root.iterdir())[:8]) or "nothing"
    raise DataError(f"{root}: unrecognized dataset format ({wanted}); it contains {present}")
