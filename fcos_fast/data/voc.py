"""PASCAL VOC folders: JPEGImages, Annotations, ImageSets/Main.

Coordinates are taken as they stand in the file and read as continuous pixel coordinates, as today's labelling
tools write them: a box reaches from ``xmin`` to ``xmax``, and a box over an image of W pixels from 0 to W.
Nothing is subtracted. PASCAL's own files number pixels from 1 and include the last, so that read in this way
their boxes miss one row and one column at the upper left, in training and evaluation alike.

Paths inside an xml are not looked at: the annotation of ``JPEGImages/a.jpg`` is ``Annotations/a.xml``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

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
        categories: the classes, where they are known, as for validation; a box of another class is refused.
            None takes the classes that occur, sorted by name.
        strict: refuse boxes that would otherwise be left out or cut.

    Raises:
        DataError: the data set cannot be used; one line with the file, the value and the remedy.
    """
    root = Path(root)
    for folder in ("Annotations", "JPEGImages"):
        if not (root / folder).is_dir():
            raise DataError(f"{root}: has no folder {folder}; a VOC data set has Annotations and JPEGImages")
    images = _images_by_stem(root / "JPEGImages")
    stems = _all_stems(root, images) if split is None else _read_split(root, split)
    report = Report(source=root.name if split is None else f"{root.name}, split {split}", strict=strict)
    annotations = [_read_annotation(root, stem, images, report) for stem in stems]
    if categories is None:
        names = sorted({name for annotation in annotations for name in annotation.names})
        if not names:
            raise DataError(
                f"{root / 'Annotations'}: no xml of {report.source} has an object; label some first"
            )
        categories = Categories(tuple(names))
    records = [_to_record(annotation, categories, report) for annotation in annotations]
    report.images = len(records)
    report.empty_images = sum(len(record.boxes) == 0 for record in records)
    report.boxes = sum(len(record.boxes) for record in records)
    return DetectionDataset(records, categories, report)


@dataclass(frozen=True)
class _Annotation:
    """An xml file and its image, before classes have numbers and boxes are checked."""

    file: Path
    image: Path
    size: tuple[int, int]
    names: list[str]
    boxes: np.ndarray  # (N, 4) float64
    difficult: np.ndarray  # (N,) bool


def _images_by_stem(folder: Path) -> dict[str, Path]:
    images: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            continue
        if path.stem in images:
            raise DataError(f"{path}: has the same stem as {images[path.stem].name}; keep one of the two")
        images[path.stem] = path
    return images


def _all_stems(root: Path, images: dict[str, Path]) -> list[str]:
    stems = sorted(images.keys() | {path.stem for path in (root / "Annotations").glob("*.xml")})
    if not stems:
        suffixes = ", ".join(IMAGE_SUFFIXES)
        raise DataError(
            f"{root}: there is no image ({suffixes}) in JPEGImages and no xml in Annotations; add them"
        )
    return stems


def _read_split(root: Path, split: str) -> list[str]:
    file = root / "ImageSets" / "Main" / f"{split}.txt"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in file.parent.glob("*.txt"))) or "none"
        raise DataError(f"{file}: there is no such split; choose one of this data set's: {known}")
    lines = (line.strip() for line in file.read_text(encoding="utf-8").splitlines())
    stems = list(dict.fromkeys(line for line in lines if line))
    if not stems:
        raise DataError(f"{file}: the split is empty; write one image name without its suffix on each line")
    return stems


def _read_annotation(root: Path, stem: str, images: dict[str, Path], report: Report) -> _Annotation:
    file = root / "Annotations" / f"{stem}.xml"
    if stem not in images:
        suffixes = ", ".join(IMAGE_SUFFIXES)
        folder = root / "JPEGImages"
        raise DataError(
            f"{file}: there is no image {stem} ({suffixes}) in {folder}; add it or leave {stem} out"
        )
    image = images[stem]
    if not file.is_file():
        raise DataError(
            f"{image}: has no annotation {file}; add it (one without objects where there is nothing to see) "
            f"or leave {stem} out"
        )
    try:
        tree = ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{file}: is not valid xml ({error}); write it again or leave {stem} out") from None

    names, boxes, difficult = [], [], []
    for element in tree.findall("object"):
        name = _text(element, "name")
        if not name:
            raise DataError(f"{file}: an object has no name; give it its class")
        corners = [_text(element, f"bndbox/{corner}") for corner in _CORNERS]
        try:
            boxes.append([float(corner) for corner in corners])
        except ValueError:
            report.add("box that is not four numbers, left out", file, f"{name} [{', '.join(corners)}]")
            continue
        names.append(name)
        difficult.append(_text(element, "difficult") not in ("", "0"))

    size = image_size(image)
    stated = _text(tree, "size/width"), _text(tree, "size/height")
    if stated not in (("", ""), ("0", "0"), tuple(map(str, size))):
        value = f"{stated[0]}x{stated[1]}, but {image.name} has {size[0]}x{size[1]} pixels"
        report.add("annotation for another image size, used as it stands", file, value)
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    return _Annotation(file, image, size, names, boxes, np.array(difficult, dtype=bool))


def _text(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _to_record(annotation: _Annotation, categories: Categories, report: Report) -> Record:
    try:
        labels = np.array([categories.label_of(name) for name in annotation.names], dtype=np.int64)
    except ValueError as error:
        raise DataError(f"{annotation.file}: {error}; correct the name or train with this class") from None
    boxes, rows = check_boxes(annotation.boxes, annotation.names, annotation.size, annotation.file, report)
    return Record(
        name=annotation.image.name,
        size=annotation.size,
        boxes=boxes,
        labels=labels[rows],
        ignore=annotation.difficult[rows],
        image=annotation.image,
    )
