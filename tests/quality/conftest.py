"""Datasets in three formats, clean or with planted faults."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import pytest
import yaml
from PIL import Image

from fcos_fast.data import SyntheticConfig
from fcos_fast.data.synthetic import CATEGORIES, synthetic_image

FORMATS = ("voc", "coco", "yolo")
SIZE = (160, 120)
SMALL = ("--model.min_size", "null", "--model.max_size", "null")
"""Options for the generated images, which are used in their own size."""


@dataclass(frozen=True)
class Photo:
    """An image file and its labels; ``stated`` is the size in the annotations, (width, height)."""

    name: str
    data: bytes
    boxes: tuple[tuple[str, tuple[float, float, float, float]], ...]
    stated: tuple[int, int] = SIZE

    def add(self, *boxes):
        return replace(self, boxes=(*self.boxes, *boxes))


def encode(pixels: np.ndarray | Image.Image, kind: str = "JPEG", **options) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def generated(index: int, prefix: str = "") -> Photo:
    """A generated photo with two objects or more, none of them at an end of any scale."""
    config = SyntheticConfig(size=SIZE[::-1], object_size=(24, 70), max_objects=4)
    record = synthetic_image(7, index, config)
    boxes = zip(
        [CATEGORIES.names[label] for label in record.labels], map(tuple, record.boxes.tolist()), strict=True
    )
    return Photo(
        f"{prefix}{index:04d}.jpg", encode(record.image.transpose(1, 2, 0), quality=92), tuple(boxes)
    )


def write(root: Path, kind: str, splits: Mapping[str, Sequence[Photo]]) -> Path:
    """Write photos as VOC, COCO or YOLO."""
    {"voc": _write_voc, "coco": _write_coco, "yolo": _write_yolo}[kind](root, splits)
    return root


def _save(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def _write_voc(root, splits):
    for split, photos in splits.items():
        for photo in photos:
            _save(root / "JPEGImages" / photo.name, photo.data)
            objects = "".join(
                f"<object><name>{escape(name)}</name><bndbox><xmin>{a}</xmin><ymin>{b}</ymin><xmax>{c}</xmax>"
                f"<ymax>{d}</ymax></bndbox></object>"
                for name, (a, b, c, d) in photo.boxes
            )
            size = "<size><width>{}</width><height>{}</height></size>".format(*photo.stated)
            xml = f"<annotation>{size}{objects}</annotation>"
            _save((root / "Annotations" / photo.name).with_suffix(".xml"), xml)
        names = "\n".join(Path(photo.name).stem for photo in photos)
        _save(root / "ImageSets" / "Main" / f"{split}.txt", names)


def _names(splits) -> list[str]:
    return list(
        dict.fromkeys(name for photos in splits.values() for photo in photos for name, _ in photo.boxes)
    )


def _write_coco(root, splits):
    names = _names(splits)
    for split, photos in splits.items():
        images, annotations = [], []
        for i, photo in enumerate(photos):
            _save(root / split / photo.name, photo.data)
            images.append(
                {"id": i, "file_name": photo.name, "width": photo.stated[0], "height": photo.stated[1]}
            )
            for name, (a, b, c, d) in photo.boxes:
                box = {"id": len(annotations), "image_id": i, "category_id": names.index(name) + 1}
                annotations.append(box | {"bbox": [a, b, c - a, d - b]})
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(names)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        _save(root / "annotations" / f"{split}.json", json.dumps(content))


def _write_yolo(root, splits):
    names = _names(splits)
    for split, photos in splits.items():
        for photo in photos:
            _save(root / "images" / split / photo.name, photo.data)
            (w, h), rows = photo.stated, []
            for name, (a, b, c, d) in photo.boxes:
                row = (names.index(name), (a + c) / 2 / w, (b + d) / 2 / h, (c - a) / w, (d - b) / h)
                rows.append(" ".join(f"{value:.9g}" for value in row))
            _save((root / "labels" / split / photo.name).with_suffix(".txt"), "\n".join(rows))
    folders = {split: f"images/{split}" for split in splits}
    _save(root / "data.yaml", yaml.safe_dump({"names": names, **folders}))


@pytest.fixture(scope="session")
def photos() -> Callable[[int], list[Photo]]:
    """The first generated photos, made once."""
    made = [generated(i) for i in range(60)]
    return lambda count: list(made[:count])


@pytest.fixture
def clean(photos) -> dict[str, list[Photo]]:
    """Two splits without a fault."""
    everything = photos(60)
    return {"train": everything[:45], "val": everything[45:]}
