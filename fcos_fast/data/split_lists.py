"""New splits of a dataset in its own format, in a folder beside it: lists of images, and links to the dataset.

Nothing in the dataset changes, and no image or annotation is copied or rewritten: XML files, label files and every
entry of a COCO file stay as they are, with what the readers do not use.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from .checks import DataError, brief
from .coco import file_of_split
from .dataset import DetectionDataset
from .files import new_folder
from .paths import composed
from .readers import find_reader
from .text_files import read_json, read_yaml
from .voc import folders_of_split
from .yolo import SPLITS, find_yaml, keypoint_shape

Members = Mapping[str, list[int]]
"""Split -> the indices of its images."""


def write_splits(
    root: str | Path, split: str | None, dataset: DetectionDataset, members: Members, output: str | Path
) -> None:
    """Write a folder that reads as a dataset with new splits.

    Args:
        root, split: where ``dataset`` was loaded from.
        dataset: the images that are divided.
        members: new splits.
        output: folder to create; it appears once it is complete. It links to the dataset by a relative path.

    Raises:
        DataError: ``output`` exists, or the format cannot have such splits.
    """
    reader, root = find_reader(root)
    final = Path(output)
    with new_folder(final) as folder:
        _WRITERS[reader.name](root, split, dataset, members, _Links(folder, final))


class _Links:
    """A folder that is being written, and links in it that are right once it is in its final place."""

    def __init__(self, folder: Path, final: Path):
        self.folder = folder
        self.place = os.path.join(os.path.realpath(final.parent), final.name)

    def add(self, name: str, target: str | Path) -> None:
        (self.folder / name).symlink_to(os.path.relpath(os.path.realpath(target), self.place))


def _write_voc(
    root: Path, split: str | None, dataset: DetectionDataset, members: Members, links: _Links
) -> None:
    annotations, images = folders_of_split(root, split)
    links.add("Annotations", annotations)
    links.add("JPEGImages", images)
    lists = links.folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    for name, indices in members.items():
        lines = [composed(Path(dataset.records.names[i]).stem) + "\n" for i in indices]
        (lists / f"{name}.txt").write_text("".join(lines), encoding="utf-8")


def _write_coco(
    root: Path, split: str | None, dataset: DetectionDataset, members: Members, links: _Links
) -> None:
    file = file_of_split(root, split)
    links.add("images", _image_folder(dataset, file))
    (links.folder / "annotations").mkdir()
    content: dict[str, Any] = read_json(file)
    ids = [dataset.records.image_id(i) for i in range(len(dataset))]
    for name, indices in members.items():
        chosen = {ids[i] for i in indices}
        part = content | {
            "images": [image for image in content["images"] if image["id"] in chosen],
            "annotations": [a for a in content["annotations"] if a["image_id"] in chosen],
        }
        with open(links.folder / "annotations" / f"instances_{name}.json", "w", encoding="utf-8") as stream:
            json.dump(part, stream)


def _image_folder(dataset: DetectionDataset, file: Path) -> Path:
    """The folder to which the file names of a COCO file are relative."""
    name = PurePath(dataset.records.names[0].replace("\\", "/"))
    if name.is_absolute() or ".." in name.parts:
        raise DataError(
            f"{file}: {brief(str(name))} is not a path inside the folder of the images; convert the dataset first "
            "(fcos-fast data convert --to coco)"
        )
    return Path(dataset.records.files[0]).parents[len(name.parts) - 1]


def _write_yolo(
    root: Path, _: str | None, dataset: DetectionDataset, members: Members, links: _Links
) -> None:
    import yaml

    unknown = [name for name in members if name not in SPLITS]
    if unknown:
        raise DataError(f"split {unknown[0]}: a YOLO dataset has only {', '.join(SPLITS)}; rename it")
    file = find_yaml(root)
    assert file is not None  # the reader has found it
    images = [os.path.abspath(image) for image in dataset.records.files]
    top = os.path.commonpath(
        [os.path.abspath(file.parent), *images]
    )  # images may be beside the folder of the file
    links.add("data", top)
    for name, indices in members.items():
        paths = [os.path.relpath(images[i], top) for i in indices]
        lines = "".join(f"./data/{path}\n" for path in paths)
        (links.folder / f"{name}.txt").write_text(lines, encoding="utf-8")
    content: dict[str, object] = {name: f"{name}.txt" for name in members}
    content["names"] = dict(enumerate(dataset.categories.names))
    if keypoints := keypoint_shape(read_yaml(file), file):  # without it, label files read as polygons
        content["kpt_shape"] = list(keypoints)
    text = yaml.safe_dump(content, allow_unicode=True, sort_keys=False)
    (links.folder / "data.yaml").write_text(text, encoding="utf-8")


_WRITERS = {"VOC": _write_voc, "COCO": _write_coco, "YOLO": _write_yolo}
