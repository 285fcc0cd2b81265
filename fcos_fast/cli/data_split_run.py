"""The part of ``fcos-fast data split`` that needs torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fcos_fast.cli.data_split import DUPLICATES, SplitOptions
from fcos_fast.data import Categories, DataError, DetectionDataset
from fcos_fast.data.files import check_is_new
from fcos_fast.data.image_names import paths_in_common_folder
from fcos_fast.data.split_lists import write_splits
from fcos_fast.data.stratify import class_counts, stratified
from fcos_fast.data.text_files import read_text
from fcos_fast.text import printable

MOST_CLASSES = 30
"""Classes in the table; of more, those whose shares differ most from the fractions."""


def run(options: SplitOptions) -> None:
    """Divide the dataset, write the new folder, and print what every split has."""
    check_is_new(options.output)
    dataset = options.data.load(options.data.split)
    names = list(options.fractions)
    shares = list(options.fractions.values())
    counts = class_counts(dataset.records, len(dataset.categories))
    unit = _units(dataset, options)
    in_unit = np.bincount(unit)
    counts_of_unit = np.zeros((len(in_unit), counts.shape[1]), dtype=np.int64)
    np.add.at(counts_of_unit, unit, counts)
    split = stratified(counts_of_unit, in_unit, shares, options.seed)[unit]
    members = {name: np.flatnonzero(split == i).tolist() for i, name in enumerate(names)}
    for name, indices in members.items():
        if not indices:
            raise ValueError(
                f"split {name} would have no image: {len(in_unit)} {'groups' if _grouped(options) else 'images'} for "
                f"{len(names)} splits; give it a larger share in --fractions"
            )
    write_splits(options.data.root, options.data.split or None, dataset, members, options.output)
    if _grouped(options):
        print(f"{len(in_unit)} groups of 1 to {in_unit.max()} images")
    print(_table(dataset.categories, counts, split, names, shares))
    print(f"\n{printable(options.output)}: give it to fcos-fast train as --data.root")


def _grouped(options: SplitOptions) -> bool:
    return options.group is not None or options.group_file is not None


def _units(dataset: DetectionDataset, options: SplitOptions) -> np.ndarray:
    """(I,) int64, the group of each image: each its own by default."""
    paths = paths_in_common_folder(dataset.records.files[:])
    if options.group == DUPLICATES:
        return _near_duplicates(dataset)
    if options.group is not None:
        keys = _matched(paths, options.group)
    elif options.group_file is not None:
        keys = _listed(paths, Path(options.group_file).expanduser())
    else:
        return np.arange(len(paths))
    numbers: np.ndarray = np.unique(keys, return_inverse=True)[1]
    return numbers


def _near_duplicates(dataset: DetectionDataset) -> np.ndarray:
    from fcos_fast.quality.duplicates import duplicate_groups
    from fcos_fast.quality.images import scan_all

    files = [Path(file) for file in dataset.records.files]
    scanned = scan_all(files, dataset.max_pixels)
    for file, found in zip(files, scanned, strict=True):
        if found.error:
            raise DataError(f"{file}: {found.error}")
    numbers: np.ndarray = np.unique(duplicate_groups(scanned), return_inverse=True)[1]
    return numbers


def _matched(paths: Sequence[str], pattern: str) -> list[str]:
    keys = []
    for path in paths:
        found = re.search(pattern, path)
        if found is None:
            raise DataError(
                f"--group {pattern!r}: does not match the image {path}; extend it, for example by '|.*', which makes a "
                "group of the whole path"
            )
        keys.append(next((text for text in found.groups() if text is not None), found[0]))
    return keys


def _listed(paths: Sequence[str], file: Path) -> list[str]:
    """The group of each image in a file of lines ``image,group``."""
    group_of: dict[str, str] = {}
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        image, separator, group = line.rpartition(",")
        if not separator or not image.strip() or not group.strip():
            raise DataError(f"{file}:{number}: is {line!r}; expected image,group")
        known = group_of.setdefault(image.strip(), group.strip())
        if known != group.strip():
            raise DataError(
                f"{file}:{number}: a line before has {image.strip()} in group {known}; keep one of the two"
            )
    missing = [path for path in paths if path not in group_of]
    if missing:
        raise DataError(f"{file}: has no line for {len(missing)} images, the first is {missing[0]}; add them")
    return [group_of[path] for path in paths]


def _table(
    categories: Categories,
    counts: np.ndarray,
    split: np.ndarray,
    names: Sequence[str],
    shares: Sequence[float],
) -> str:
    """Images, boxes, and boxes of each class in every split."""
    images = np.bincount(split, minlength=len(names))
    boxes = np.stack([counts[split == i].sum(axis=0) for i in range(len(names))])  # (S, C)
    total = boxes.sum(axis=0)
    distance = np.abs(boxes / np.maximum(total, 1) - np.array(shares)[:, None]).max(axis=0) * (total > 0)
    shown = np.sort(np.argsort(-distance, kind="stable")[:MOST_CLASSES]).tolist()
    labels = [printable(categories.names[i]) for i in shown]
    width = max(map(len, ("boxes of all classes", *labels)))
    lines = [
        " " * width + f"{'all':>9}" + "".join(f"{printable(name):>18}" for name in names),
        _row("images", images, width),
        _row("boxes of all classes", boxes.sum(axis=1), width),
        *(_row(label, boxes[:, i], width) for label, i in zip(labels, shown, strict=True)),
    ]
    if len(shown) < len(categories):
        lines.append(f"({len(categories) - len(shown)} more classes, which are closer to the fractions)")
    for i, name in enumerate(names):
        absent = [
            printable(categories.names[c]) for c in np.flatnonzero((boxes[i] == 0) & (total > 0)).tolist()
        ]
        if absent:
            lines.append(f"{printable(name)} has no box of {', '.join(absent)}")
    return "\n".join(lines)


def _row(title: str, values: np.ndarray, width: int) -> str:
    total = int(values.sum())
    cells = "".join(f"{value:9,} {value / max(1, total):8.1%}" for value in values.tolist())
    return f"{title:{width}}{total:9,}{cells}"
