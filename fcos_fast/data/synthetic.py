"""Generated pictures: flat shapes over textured ground, to train on where there are no photographs.

Picture ``index`` of ``seed`` is the same, bit for bit, whoever draws it and in whatever order.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from .categories import Categories
from .checks import DataError
from .dataset import DetectionDataset, Record

_SUBPIXELS = 4
_TRIES = 20
_MIN_CONTRAST = 70.0


@dataclass(frozen=True)
class SyntheticConfig:
    """What the pictures look like.

    Attributes:
        size: (height, width) of a picture in pixels.
        object_size: (least, largest) longer side of a shape in pixels, drawn log-uniformly; the largest is limited
            to nine tenths of the picture's shorter side.
        max_objects: a picture holds 1 to so many shapes, fewer where they find no room.
        min_visible: a shape is put only where at least this part of it lies in the picture, and where it leaves at
            least this part of each earlier shape uncovered. So no shape in a picture goes without its box.
    """

    size: tuple[int, int] = (240, 320)
    object_size: tuple[int, int] = (16, 200)
    max_objects: int = 8
    min_visible: float = 0.6


def _regular(corners: int, inner: float | None = None) -> np.ndarray:
    """Corners of a regular polygon, or of a star where ``inner`` is the radius of its notches: (K, 2), x and y."""
    count = corners if inner is None else 2 * corners
    angles = 2 * np.pi * np.arange(count) / count
    radii = np.where(np.arange(count) % 2 == 0, 1.0, 1.0 if inner is None else inner)
    return np.stack([radii * np.sin(angles), -radii * np.cos(angles)], axis=1)


_ARM = 0.36
_PLUS = [
    *[(-_ARM, -1), (_ARM, -1), (_ARM, -_ARM), (1, -_ARM), (1, _ARM), (_ARM, _ARM)],
    *[(_ARM, 1), (-_ARM, 1), (-_ARM, _ARM), (-1, _ARM), (-1, -_ARM), (-_ARM, -_ARM)],
]

SHAPES: dict[str, tuple[np.ndarray, ...]] = {
    "circle": (_regular(48),),
    "cross": (np.array(_PLUS),),
    "ring": (_regular(48), 0.55 * _regular(48)),
    "square": (_regular(4),),
    "star": (_regular(5, inner=0.42),),
    "triangle": (_regular(3),),
}
"""Outline of each class as a polygon (K, 2) around the origin; a second polygon is a hole."""

CATEGORIES = Categories(tuple(SHAPES))
"""The classes of the generated pictures."""


def shape_mask(rng: np.random.Generator, name: str, size: float) -> np.ndarray:
    """Draw one shape, turned and stretched at random, whose longer side is ``size`` pixels.

    Returns:
        The part of each pixel that the shape covers, uint8 (h, w), cropped to the pixels that it touches.
    """
    angle = rng.uniform(0, 2 * np.pi)
    stretch = rng.uniform(0.75, 1.0)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    contours = [(contour * (1.0, stretch)) @ turn for contour in SHAPES[name]]
    low, high = contours[0].min(axis=0), contours[0].max(axis=0)
    scale = size / (high - low).max()
    shift = rng.uniform(0, 1, 2) - scale * low
    width, height = np.ceil(scale * (high - low)).astype(int) + 2

    canvas = Image.new("L", (width * _SUBPIXELS, height * _SUBPIXELS))
    draw = ImageDraw.Draw(canvas)
    for contour, fill in zip(contours, (255, 0), strict=False):
        corners = (scale * contour + shift) * _SUBPIXELS - 0.5
        draw.polygon([tuple(corner) for corner in corners.tolist()], fill=fill)
    mask = canvas.reduce(_SUBPIXELS)
    return np.asarray(mask.crop(mask.getbbox()))


def draw_picture(
    seed: int, index: int, config: SyntheticConfig | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw picture ``index`` of the series ``seed``.

    Returns:
        image: uint8 (3, H, W) RGB.
        boxes: (N, 4) float32, xyxy in whole pixels: the pixels that the shape touches, covered by others or not, as
            far as they lie in the picture.
        labels: (N,) int64, in ``CATEGORIES``.
    """
    config = config or SyntheticConfig()
    height, width = config.size
    rng = np.random.default_rng([seed, index])
    canvas = _background(rng, height, width)
    owner = np.full((height, width), -1)  # which shape is seen at each pixel
    areas: list[int] = []
    boxes: list[tuple[int, int, int, int]] = []
    labels: list[int] = []

    least, largest = config.object_size
    largest = min(largest, 0.9 * min(height, width))
    count = rng.integers(1, config.max_objects + 1)
    sizes = np.exp(rng.uniform(np.log(min(least, largest)), np.log(largest), count))
    for size in np.sort(sizes)[::-1]:  # small ones last: they are not to vanish under large ones
        label = int(rng.integers(len(CATEGORIES)))
        mask = shape_mask(rng, CATEGORIES.names[label], size)
        place = _find_place(rng, mask, owner, areas, config.min_visible)
        if place is None:
            continue
        (y1, y2, x1, x2), mask = place
        _paint(rng, canvas[y1:y2, x1:x2], mask)
        owner[y1:y2, x1:x2][mask > 0] = len(boxes)
        areas.append(np.count_nonzero(mask))
        boxes.append((x1, y1, x2, y2))
        labels.append(label)

    image = torch.from_numpy(_expose(rng, canvas)).permute(2, 0, 1).contiguous()
    return (
        image,
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.tensor(labels, dtype=torch.int64),
    )


def _find_place(
    rng: np.random.Generator, mask: np.ndarray, owner: np.ndarray, areas: list[int], min_visible: float
) -> tuple[tuple[int, int, int, int], np.ndarray] | None:
    """Look for a place by chance: the rows and columns (y1, y2, x1, x2) taken, and the mask as far as it lies there."""
    (h, w), (height, width) = mask.shape, owner.shape
    area = np.count_nonzero(mask)
    for _ in range(_TRIES):
        top, left = (
            int(rng.integers(-h // 4, height - 3 * h // 4)),
            int(rng.integers(-w // 4, width - 3 * w // 4)),
        )
        y1, y2, x1, x2 = max(top, 0), min(top + h, height), max(left, 0), min(left + w, width)
        part = mask[y1 - top : y2 - top, x1 - left : x2 - left]
        rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
        if np.count_nonzero(part) < min_visible * area:
            continue
        part = part[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        y1, y2, x1, x2 = y1 + rows[0], y1 + rows[-1] + 1, x1 + columns[0], x1 + columns[-1] + 1
        left_to_see = owner.copy()
        left_to_see[y1:y2, x1:x2][part > 0] = -1
        seen = np.bincount(left_to_see[left_to_see >= 0], minlength=len(areas))
        if (seen >= min_visible * np.array(areas)).all():
            return (int(y1), int(y2), int(x1), int(x2)), part
    return None


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Clouds of two or three colours, with stripes or checks over them: float32 (H, W, 3)."""
    cells = rng.integers(2, 10, 2)
    clouds = rng.integers(0, 256, (*cells, 3), dtype=np.uint8)
    clouds = np.asarray(
        Image.fromarray(clouds).resize((width, height), Image.Resampling.BICUBIC), dtype=np.float32
    )
    canvas = rng.uniform(40, 215, 3).astype(np.float32) + (clouds - 128) * np.float32(rng.uniform(0.1, 0.4))
    y, x = np.ogrid[:height, :width]
    period = int(rng.integers(6, 40))
    slope = rng.integers(-2, 3, 2)
    stripes = (slope[0] * y + slope[1] * x) // period % 2
    checks = (y // period + x // period) % 2
    pattern = (stripes, checks, np.zeros((1, 1)))[rng.integers(3)]
    return canvas + pattern[..., None].astype(np.float32) * rng.uniform(-35, 35, 3).astype(np.float32)


def _paint(rng: np.random.Generator, canvas: np.ndarray, mask: np.ndarray) -> None:
    """Lay a shape of some colour, shaded from one side to the other, over a part of the canvas, in place."""
    ground = canvas.mean(axis=(0, 1))
    colour = rng.uniform(0, 255, 3)
    while np.abs(colour - ground).max() < _MIN_CONTRAST:
        colour = rng.uniform(0, 255, 3)
    h, w = mask.shape
    y, x = np.ogrid[:h, :w]
    slope = rng.uniform(-25, 25, 2)
    shade = slope[0] * (y / h - 0.5) + slope[1] * (x / w - 0.5)
    paint = (colour + shade[..., None]).astype(np.float32)
    canvas += (mask / np.float32(255))[..., None] * (paint - canvas)


def _expose(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Take the photograph: contrast, brightness and noise, then uint8 (H, W, 3)."""
    gain = np.float32(rng.uniform(0.6, 1.15))
    offset = np.float32(rng.uniform(-20, 30))
    noise = int(rng.integers(0, 13))
    grain = rng.integers(-noise, noise + 1, canvas.shape, dtype=np.int8)
    return np.clip(canvas * gain + offset + grain, 0, 255).astype(np.uint8)


def synthetic_dataset(
    count: int, seed: int = 0, first: int = 0, config: SyntheticConfig | None = None
) -> DetectionDataset:
    """Draw the pictures ``first`` to ``first + count - 1`` of the series ``seed`` and hold them in memory."""
    config = config or SyntheticConfig()
    height, width = config.size
    records = []
    for index in range(first, first + count):
        image, boxes, labels = draw_picture(seed, index, config)
        ignore = torch.zeros(len(boxes), dtype=torch.bool)
        records.append(Record(image, f"{index:06d}", (width, height), boxes, labels, ignore))
    return DetectionDataset(records, CATEGORIES)


def write_voc(
    root: str | Path,
    splits: Mapping[str, int],
    seed: int = 0,
    config: SyntheticConfig | None = None,
    suffix: str = ".jpg",
) -> Path:
    """Write generated pictures as a VOC folder, so that a run takes the same way as with photographs.

    Args:
        root: the folder to make; it appears only when it is complete.
        splits: number of pictures of each split, such as ``{"train": 400, "test": 100}``; no picture is in two.
        seed, config: as in :func:`draw_picture`.
        suffix: ``.jpg`` or ``.png``.

    Raises:
        DataError: ``root`` exists and is not empty.
    """
    root = Path(root)
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DataError(f"{root}: exists already; remove it or choose another folder")
    part = root.with_name(f"{root.name}.part{os.getpid()}")
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (part / folder).mkdir(parents=True)
    first = 0
    for split, count in splits.items():
        stems = []
        for index in range(first, first + count):
            stems.append(f"{index:06d}")
            image, boxes, labels = draw_picture(seed, index, config)
            file = part / "JPEGImages" / f"{stems[-1]}{suffix}"
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, quality=92)
            annotation = _to_xml(file.name, image.shape, boxes, labels)
            annotation.write(part / "Annotations" / f"{stems[-1]}.xml", encoding="unicode")
        (part / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{stem}\n" for stem in stems))
        first += count
    os.replace(part, root)
    return root


def _to_xml(name: str, shape: torch.Size, boxes: Tensor, labels: Tensor) -> ElementTree.ElementTree:
    def add(parent: ElementTree.Element, tag: str, text: object = None) -> ElementTree.Element:
        element = ElementTree.SubElement(parent, tag)
        element.text = None if text is None else str(text)
        return element

    root = ElementTree.Element("annotation")
    add(root, "filename", name)
    size = add(root, "size")
    for tag, value in zip(("depth", "height", "width"), shape, strict=True):
        add(size, tag, value)
    for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
        item = add(root, "object")
        add(item, "name", CATEGORIES.names[label])
        add(item, "difficult", 0)
        corners = add(item, "bndbox")
        for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
            add(corners, tag, int(value))
    ElementTree.indent(root)
    return ElementTree.ElementTree(root)
