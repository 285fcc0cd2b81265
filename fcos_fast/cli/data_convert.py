"""``fcos-fast data convert``: a dataset in another format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from fcos_fast.cli.data_source import SourceConfig
from fcos_fast.cli.options import parse_options
from fcos_fast.text import printable

COMMON = ("data.root", "to", "output", "data.split", "images", "config")
"""Options that the help lists first."""


@dataclass(frozen=True)
class ConvertDataOptions:
    """Write a dataset in another format: VOC, COCO or YOLO.

      fcos-fast data convert --data.root cells --to yolo --output cells-yolo

    Boxes, classes and splits are kept, and read back exactly as they were. A line each says what the format does not
    hold, such as crowds in YOLO. What training does not use is lost, such as segmentations and keypoints.

    Attributes:
        to: format to write: coco, voc or yolo.
        output: folder to create.
        data: the dataset to read.
        images: how images come into the new folder: hardlink needs no space but one file system for both, symlink
            needs the old folder to stay, copy needs neither.
    """

    to: Literal["coco", "voc", "yolo"]
    output: str
    data: SourceConfig = field(default_factory=SourceConfig)
    images: Literal["hardlink", "symlink", "copy"] = "hardlink"


def main(arguments: Sequence[str]) -> int:
    """Run ``fcos-fast data convert``."""
    options = parse_options(ConvertDataOptions, "data convert", arguments, common=COMMON)
    if not options.data.root:
        raise ValueError("no dataset; give its folder with --data.root")

    from fcos_fast.data import convert, dataset_splits
    from fcos_fast.data.files import check_is_new
    from fcos_fast.data.readers import find_reader
    from fcos_fast.data.voc import count_unlisted

    check_is_new(options.output)
    names = [options.data.split] if options.data.split else dataset_splits(options.data.root) or [""]
    splits = {name: options.data.load(name) for name in names}
    for line in convert(splits, options.to, options.output, options.images):
        print(line)
    reader, root = find_reader(options.data.root)
    unlisted = count_unlisted(root, names) if reader.name == "VOC" and not options.data.split else 0
    if unlisted:
        print(f"{unlisted} images omitted, which are in no split; add them to a list in ImageSets/Main")
    written = ", ".join(dataset_splits(options.output)) or "no splits"
    print(f"{printable(options.output)}: {options.to.upper()}, {printable(written)}")
    return 0
