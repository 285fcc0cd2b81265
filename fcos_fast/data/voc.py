"""PASCAL VOC: folders JPEGImages, Annotations and ImageSets/Main, and other folders of images and XML files.

Coordinates are read unchanged as continuous pixel coordinates, as current labeling tools write them: a box extends from
``xmin`` to ``xmax``, and a box over an image of W pixels from 0 to W. PASCAL's own files number pixels from 1 and
include the last, so their boxes miss the first row and column, both in training and in evaluation.

Paths inside an XML file are ignored: the annotation of ``JPEGImages/a.jpg`` is ``Annotations/a.xml``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from xml.etree import ElementTree

import numpy as np

from .categories import Categories
from .checks import IMAGE_SUFFIXES, MAX_PIXELS, DataError, Report, check_boxes, read_flag
from .dataset import DetectionDataset
from .files import files_in, is_hidden
from .images import image_size
from .jpeg import count_truncated
from .paths import composed
from .records import Record
from .text_files import read_list, read_text, read_xml

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_LISTS = Path("ImageSets", "Main")
_ALIASES = {"val": "valid", "valid": "val"}
_FLAGS_OF_A_CLASS = ("-1", "0", "1")  # in PASCAL's lists of one class: absent, difficult, present


def is_voc(root: Path) -> bool:
    """Whether ``root`` looks like a VOC folder."""
    return (root / "Annotations").is_dir() and (root / "JPEGImages").is_dir()


def is_loose_voc(root: Path) -> bool:
    """Whether ``root`` contains VOC's XML files in other folders; see :func:`load_voc`."""
    return root.is_dir() and bool(_places(root))


def voc_splits(root: Path) -> list[str]:
    """The names of the splits: those of the lists in ``ImageSets/Main`` or of the folders."""
    places = _places(root)
    folders = [name for name in places if name is not None]
    if None not in places:
        return folders
    return folders + [name for name, file in _lists(root).items() if not _is_of_one_class(file, places[None])]


def load_voc(
    root: str | Path,
    split: str | None = None,
    categories: Categories | None = None,
    strict: bool = False,
    allow_outside: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> DetectionDataset:
    """Read a VOC folder.

    Args:
        root: folder that contains one of the following:
            ``JPEGImages``, ``Annotations`` and, for splits, ``ImageSets/Main``;
            ``images`` and ``annotations``, each with an optional folder per split;
            images and XML files side by side, in ``root`` itself or in one folder per split (Roboflow).
        split: name of a file in ``ImageSets/Main``, or of the folder of a split; None reads all images. A line of the
            file names an image, with or without folder and suffix; the second column of PASCAL's lists of one class is
            ignored.
        categories, strict, allow_outside, max_pixels: see :func:`fcos_fast.data.load_dataset`.

    Raises:
        DataError: the dataset cannot be used.
    """
    root = Path(root).expanduser()
    report = Report.of_split(root, split, strict)
    place, lines = _find_split(root, split, report)
    pairs = list(_pairs(place, lines, report))
    count_truncated((image for _, image in pairs), report)
    annotations = [_read_annotation(xml, image, max_pixels, report) for xml, image in pairs]
    if categories is None:
        names = sorted({name for annotation in annotations for name in annotation.names})
        if not names:
            faults = f" that can be used ({', '.join(report.faults)})" if report.faults else ""
            raise DataError(
                f"{place.annotations}: no XML file of {report.source} has an object{faults}; label some images"
            )
        categories = Categories(tuple(names))
    records = [_to_record(annotation, categories, report) for annotation in annotations]
    return DetectionDataset(records, categories, report, max_pixels)


@dataclass(frozen=True)
class _Place:
    """The folders of XML files and of images, which may be the same."""

    annotations: Path
    images: Path


@dataclass(frozen=True)
class _Annotation:
    """An XML file and its image, before classes become labels and boxes are checked."""

    file: Path
    image: Path
    size: tuple[int, int]
    names: list[str]
    boxes: np.ndarray  # (N, 4) float64
    difficult: np.ndarray  # (N,) bool


def _places(root: Path) -> dict[str | None, _Place]:
    """Split -> its folders; None for images without a split."""
    places: dict[str | None, _Place] = {}
    if is_voc(root):
        return {None: _Place(root / "Annotations", root / "JPEGImages")}
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() and not is_hidden(path.name)]
    by_name = {folder.name.lower(): folder for folder in folders}
    annotations = by_name.get("annotations")
    images = by_name.get("jpegimages") or by_name.get("images")
    if annotations and images:
        if files_in(annotations, [".xml"]):
            return {None: _Place(annotations, images)}
        for folder in sorted(annotations.iterdir()):
            if folder.is_dir() and (images / folder.name).is_dir() and files_in(folder, [".xml"]):
                places[folder.name] = _Place(folder, images / folder.name)
    if _has_pair(root):
        places[None] = _Place(root, root)
    return places | {folder.name: _Place(folder, folder) for folder in folders if _has_pair(folder)}


def _has_pair(folder: Path) -> bool:
    """Whether a folder contains an image and its XML file."""
    stems = {composed(path.stem) for path in files_in(folder, [".xml"])}
    return bool(stems) and any(composed(path.stem) in stems for path in files_in(folder, IMAGE_SUFFIXES))


def _find_split(root: Path, split: str | None, report: Report) -> tuple[_Place, list[str] | None]:
    """The folders of a split and the lines of its list; None means all images of the folders."""
    places = _places(root) if root.is_dir() else {}
    if not places:
        raise DataError(f"{root}: has no folder Annotations; a VOC dataset has Annotations and JPEGImages")
    lists = _lists(root)
    known = ", ".join([*filter(None, places), *lists])
    if split is None:
        if None not in places and len(places) > 1:
            raise DataError(f"{root}: has several splits; choose one of {known}")
        return places.get(None) or next(iter(places.values())), None
    for name in (split, _ALIASES.get(split, split)):
        if name in places:
            return places[name], None
        if name in lists and None in places:
            return places[None], _lines(lists[name], report)
    if not known:
        raise DataError(f'{root}: has no splits; use all images with an empty name (--data.train "")')
    raise DataError(f"{root / _LISTS / split}.txt: unknown split; this dataset has {known}")


def count_unlisted(root: Path, splits: Collection[str]) -> int:
    """The number of images of a VOC folder that are in none of these ``splits``; an empty name means all images."""
    report = Report(root.name)
    listed: dict[Path, set[str]] = {}
    known: dict[Path, set[str]] = {}
    for split in splits:
        place, lines = _find_split(root, split or None, report)
        stems = known.setdefault(place.images, set(_by_stem(files_in(place.images, IMAGE_SUFFIXES))))
        listed.setdefault(place.images, set()).update(stems if lines is None else _listed(lines, stems))
    return sum(len(stems - listed[folder]) for folder, stems in known.items())


def folders_of_split(root: Path, split: str | None) -> tuple[Path, Path]:
    """The folders of the XML files and of the images, which may be the same.

    Raises:
        DataError: there is no such split.
    """
    place, _ = _find_split(root, split, Report.of_split(root, split, strict=False))
    return place.annotations, place.images


def _lists(root: Path) -> dict[str, Path]:
    """Name -> list of images in ``ImageSets/Main``."""
    folder = root / _LISTS
    return {path.stem: path for path in files_in(folder, [".txt"])} if folder.is_dir() else {}


def _is_of_one_class(file: Path, place: _Place) -> bool:
    """Whether a list is one of PASCAL's of one class, which have a second column. Images may have names of this form,
    too: ``frame 1``."""
    lines = [line.strip() for line in read_text(file).split("\n") if line.strip()]
    columns = [line.split() for line in lines]
    if not lines or not all(len(line) > 1 and line[-1] in _FLAGS_OF_A_CLASS for line in columns):
        return False
    return not (place.annotations / f"{lines[0]}.xml").exists()


def _lines(file: Path, report: Report) -> list[str]:
    lines = read_list(file, report)
    if not lines:
        raise DataError(f"{file}: the split is empty; write one image name per line, without suffix")
    return lines


def _pairs(place: _Place, lines: list[str] | None, report: Report) -> Iterator[tuple[Path, Path]]:
    """The XML file and the image file of each image of a split."""
    images = _by_stem(files_in(place.images, IMAGE_SUFFIXES))
    xmls = _by_stem(files_in(place.annotations, [".xml"]))
    suffixes = ", ".join(IMAGE_SUFFIXES)
    known = images.keys() | xmls
    stems = sorted(known) if lines is None else list(_listed(lines, known))
    if not stems:
        raise DataError(
            f"{place.images}: contains no images ({suffixes}), and {place.annotations} no XML files; add them"
        )
    for stem in stems:
        xml, image = xmls.get(stem, place.annotations / f"{stem}.xml"), images.get(stem)
        if image is None:
            raise DataError(
                f"{xml}: image {stem} ({suffixes}) is missing in {place.images}; add it or remove {stem}"
            )
        if stem not in xmls:
            raise DataError(
                f"{image}: has no annotation {xml}; add it (without objects if the image is empty) or remove {stem}"
            )
        yield xml, image


def _by_stem(paths: list[Path]) -> dict[str, Path]:
    by_stem: dict[str, Path] = {}
    for path in paths:
        stem = composed(path.stem)
        if stem in by_stem:
            raise DataError(f"{path}: has the same stem as {by_stem[stem].name}; remove one of the two")
        by_stem[stem] = path
    return by_stem


def _listed(lines: list[str], known: Collection[str]) -> Iterator[str]:
    """The stems that the lines of a list name, without duplicates."""
    seen = set()
    for line in lines:
        spellings = list(_spellings(line))
        stem = next((spelled for spelled in spellings if spelled in known), spellings[-1])
        if stem not in seen:
            seen.add(stem)
            yield stem


def _spellings(line: str) -> Iterator[str]:
    """The stems that a line may mean: unchanged, without its suffix, and without a second column."""
    first, _, second = composed(line).rpartition(" ")
    for text in (composed(line), first.strip()) if second in _FLAGS_OF_A_CLASS else (composed(line),):
        path = PurePath(text.replace("\\", "/"))
        yield path.name
        if path.suffix.lower() in (*IMAGE_SUFFIXES, ".xml"):
            yield path.stem


def _read_annotation(file: Path, image: Path, max_pixels: int, report: Report) -> _Annotation:
    tree = read_xml(file, report)
    names, boxes, difficult = [], [], []
    for element in tree.findall("object"):
        name = _text(element, "name")
        if not name:
            raise DataError(f"{file}: an object has no name; add its class")
        corners = [_text(element, f"bndbox/{corner}") for corner in _CORNERS]
        try:
            boxes.append([float(corner) for corner in corners])
        except ValueError:
            report.add("box that is not four numbers, skipped", file, f"{name} [{', '.join(corners)}]")
            continue
        names.append(name)
        difficult.append(read_flag(_text(element, "difficult"), "difficult", file, report))

    size = image_size(image, max_pixels)
    stated = _text(tree, "size/width"), _text(tree, "size/height")
    numbers = _numbers(stated)
    if numbers not in ((0, 0), size):
        value = f"{stated[0]}x{stated[1]}, but {image.name} has {size[0]}x{size[1]} pixels"
        report.add("annotation for another image size, used unchanged", file, value)
        if numbers == size[::-1]:
            report.unrotated.append(str(image))
    return _Annotation(
        file,
        image,
        size,
        names,
        boxes=np.array(boxes, dtype=np.float64).reshape(-1, 4),
        difficult=np.array(difficult, dtype=bool),
    )


def _numbers(texts: Sequence[str]) -> tuple[float, ...] | None:
    """The numbers, 0 for an empty text; None if one is no number."""
    try:
        return tuple(float(text or 0) for text in texts)
    except ValueError:
        return None


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
