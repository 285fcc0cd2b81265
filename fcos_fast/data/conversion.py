"""Datasets in another format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias

from . import coco_writer, voc_writer, yolo_writer
from .categories import Categories
from .checks import DataError
from .dataset import DetectionDataset
from .files import new_folder
from .image_names import count_unsafe
from .images import image_size
from .writing import ImageFiles, Put, note, placing

Format: TypeAlias = Literal["coco", "voc", "yolo"]

_WRITERS: dict[Format, Callable[[Path, Mapping[str, DetectionDataset], Categories, Put], list[str]]] = {
    "coco": coco_writer.write,
    "voc": voc_writer.write,
    "yolo": yolo_writer.write,
}


def convert(
    splits: Mapping[str, DetectionDataset],
    to: Format,
    output: str | Path,
    images: ImageFiles = "hardlink",
) -> list[str]:
    """Write a dataset in another format.

    Boxes, labels and flags read back exactly as they were, as far as the format holds them: YOLO has no ``ignore``, and
    only COCO files have ids and areas of the objects.

    Args:
        splits: name -> split; the name is empty if there is only one and it has none.
        to: format.
        output: folder to create; it appears once it is complete.
        images: whether images are hard links, symbolic links or copies of their files.

    Returns:
        What the format does not hold or what has changed, a line each.

    Raises:
        DataError: ``output`` exists, the format cannot hold the dataset, or an image has not the size that its
            annotation states.
    """
    categories = common_categories([dataset.categories for dataset in splits.values()])
    with new_folder(output) as folder:
        for dataset in splits.values():
            _check_sizes(dataset)
        lines = _WRITERS[to](folder, splits, categories, placing(images))
    unsafe = sum(count_unsafe(dataset.records.files[:]) for dataset in splits.values())
    return [
        *note(unsafe, "images renamed: readers skip hidden names, and lists do not keep all characters"),
        *lines,
    ]


def common_categories(several: Sequence[Categories]) -> Categories:
    """All classes of several splits: in the order of their ids if these agree, otherwise sorted by name."""
    if all(categories == several[0] for categories in several):
        return several[0]
    pairs = {pair for categories in several for pair in zip(categories.ids, categories.names, strict=True)}
    ids, names = zip(*sorted(pairs), strict=True)
    if len(set(ids)) == len(set(names)) == len(pairs):
        return Categories(names, ids)
    return Categories(tuple(sorted(set(names))))


def _check_sizes(dataset: DetectionDataset) -> None:
    records = dataset.records
    for file, (width, height) in zip(records.files, records.sizes.tolist(), strict=True):
        found = image_size(file, dataset.max_pixels)
        if found != (width, height):
            raise DataError(
                f"{file}: has {found[0]}x{found[1]} pixels (upright), but its annotation states {width}x{height}; "
                "correct the annotation"
            )
