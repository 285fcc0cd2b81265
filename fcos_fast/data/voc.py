"""PASCAL VOC folders: JPEGImages, Annotations, ImageSets/Main.

Coordinates are taken as they stand in the file, as continuous pixel coordinates: the box spans from ``xmin`` to
``xmax``, and a box over a whole image of W pixels is 0 to W. Nothing is subtracted. So write today's labelling tools.
PASCAL's own files count pixels from 1 and mean the last one inclusive; read in this way their boxes lack one pixel
row and column at the upper left, in training and evaluation alike. Subtracting 1 would instead shift everybody else's.

The paths inside an xml are not looked at: the annotation of ``JPEGImages/a.jpg`` is ``Annotations/a.xml``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch

from .categories import Categories
from .checks import IMAGE_SUFFIXES, DataError, Report, check_boxes, image_size
from .dataset import DetectionDataset, Record

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def is_voc(root: Path) -> bool:
    """Whether ``root`` looks like a VOC folder."""
    return (root / "Annotations").is_dir() and (root / "JPEGImages").is_dir()


def load_voc(
    root: str | Path, split: str | None = None, categories: Categories | None = None, strict: bool = False
) -> DetectionDataset:
    """Read a VOC folder.

    Args:
        root: folder that holds ``JPEGImages``, ``Annotations`` and, for splits, ``ImageSets/Main``.
        split: name of a file in ``ImageSets/Main`` without its ``.txt``; None takes every image.
        categories: the classes, as for the evaluation of a trained model; a box of another class is refused. None
            takes the classes that occur, sorted by name.
        strict: refuse boxes that would otherwise be left out or cut.

    Raises:
        DataError: the data set cannot be used; one line with the file, the value and the remedy.
    """
    root = Path(root)
    for folder in ("Annotations", "JPEGImages"):
        if not (root / folder).is_dir():
            raise DataError(f"{root}: has no folder {folder}; a VOC data set has Annotations and JPEGImages")
    images = _images_by_stem(root / "JPEGImages")
    stems = (
        sorted(images.keys() | _stems(root / "Annotations")) if split is None else _read_split(root, split)
    )
    if not stems:
        raise DataError(
            f"{root}: has no image in JPEGImages and no xml in Annotations; put the pictures there"
        )

    report = Report(source=root.name if split is None else f"{root.name}, split {split}", strict=strict)
    annotations = [_read_annotation(root, stem, images, report) for stem in stems]
    if categories is None:
        names = sorted({name for a in annotations for name in a.names})
        if not names:
            raise DataError(
                f"{root}: no annotation of {report.source} has an object; label some or name the classes"
            )
        categories = Categories(tuple(names))
    records = [_to_record(annotation, categories, report) for annotation in annotations]
    report.images = len(records)
    report.empty_images = sum(len(r.boxes) == 0 for r in records)
    report.boxes = sum(len(r.boxes) for r in records)
    return DetectionDataset(records, categories, report)


@dataclass(frozen=True)
class _Annotation:
    """An xml file and its image, before classes have numbers and boxes are checked."""

    file: Path
    image: Path
    size: tuple[int, int]
    names: list[str]
    boxes: np.ndarray  # (N, 4) float64
    difficult: list[bool]


def _stems(folder: Path) -> set[str]:
    return {path.stem for path in folder.glob("*.xml")}


def _images_by_stem(folder: Path) -> dict[str, Path]:
    images: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        if path.stem in images:
            raise DataError(f"{path}: has the same stem as {images[path.stem].name}; keep one of the two")
        images[path.stem] = path
    return images


def _read_split(root: Path, split: str) -> list[str]:
    file = root / "ImageSets" / "Main" / f"{split}.txt"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in file.parent.glob("*.txt"))) or "none"
        raise DataError(f"{file}: there is no such split; splits of this data set: {known}")
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    stems = list(dict.fromkeys(line for line in lines if line))
    if not stems:
        raise DataError(f"{file}: the split is empty; write one image name without its suffix on each line")
    return stems


def _read_annotation(root: Path, stem: str, images: dict[str, Path], report: Report) -> _Annotation:
    file = root / "Annotations" / f"{stem}.xml"
    if stem not in images:
        suffixes = ", ".join(IMAGE_SUFFIXES)
        raise DataError(
            f"{file}: there is no image {stem} ({suffixes}) in {root / 'JPEGImages'}; add it or drop {stem}"
        )
    if not file.is_file():
        raise DataError(
            f"{images[stem]}: has no annotation {file}; add it (without an object for a picture of background) "
            f"or drop {stem} from the split"
        )
    try:
        tree = ElementTree.parse(file).getroot()
    except ElementTree.ParseError as error:
        raise DataError(f"{file}: is not valid xml ({error}); write it again or drop {stem}") from None

    names, boxes, difficult = [], [], []
    for element in tree.iter("object"):
        name = (element.findtext("name") or "").strip()
        if not name:
            raise DataError(f"{file}: an object has no name; give it its class")
        texts = [element.findtext(f"bndbox/{corner}") for corner in _CORNERS]
        try:
            boxes.append([float(text) for text in texts])
        except (TypeError, ValueError):
            report.add("box that is not four numbers, left out", file, f"{name} {texts}")
            continue
        names.append(name)
        difficult.append((element.findtext("difficult") or "0").strip() not in ("0", ""))
    size = image_size(images[stem])
    _check_size(tree, size, file, report)
    return _Annotation(
        file, images[stem], size, names, np.array(boxes, dtype=np.float64).reshape(-1, 4), difficult
    )


def _check_size(tree: ElementTree.Element, size: tuple[int, int], file: Path, report: Report) -> None:
    stated = (tree.findtext("size/width"), tree.findtext("size/height"))
    if stated not in ((None, None), ("0", "0"), (str(size[0]), str(size[1]))):
        report.add(
            "annotation made for another image size, used as it stands",
            file,
            f"says {stated[0]}x{stated[1]}, the image has {size[0]}x{size[1]}",
        )


def _to_record(annotation: _Annotation, categories: Categories, report: Report) -> Record:
    try:
        labels = np.array([categories.label_of(name) for name in annotation.names], dtype=np.int64)
    except ValueError as error:
        raise DataError(f"{annotation.file}: {error}; correct the name or train with this class") from None
    boxes, rows = check_boxes(annotation.boxes, annotation.names, annotation.size, annotation.file, report)
    return Record(
        image=annotation.image,
        name=annotation.image.name,
        size=annotation.size,
        boxes=torch.from_numpy(boxes),
        labels=torch.from_numpy(labels[rows]),
        ignore=torch.tensor(annotation.difficult, dtype=torch.bool)[torch.from_numpy(rows)],
    )
