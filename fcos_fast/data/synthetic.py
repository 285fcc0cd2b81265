"""Generated images: shapes on textured backgrounds, to train on without photographs.

Image ``index`` of series ``seed`` is the same bit for bit in every process and in any order.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from .categories import Categories
from .dataset import DetectionDataset
from .files import new_folder
from .records import Record
from .voc_writer import to_xml

_SUBPIXELS = 4  # per side of a pixel, for smooth edges
_TRIES = 20
_MIN_CONTRAST = 100.0  # between a shape and the mean of its background, in the channel that differs most


@dataclass(frozen=True)
class SyntheticConfig:
    """Appearance of the generated images.

    Attributes:
        size: (height, width) of an image in pixels.
        object_size: (smallest, largest) longer side of a shape in pixels, drawn log-uniformly and limited to 0.9 of the
            image's shorter side.
        max_objects: largest number of shapes in an image. The number is drawn uniformly from 1 on; shapes without a
            free place are dropped.
        min_visible: smallest fraction of a shape that is inside the image, and that later shapes leave uncovered. So
            every visible shape has a box.
    """

    size: tuple[int, int] = (240, 320)
    object_size: tuple[int, int] = (16, 200)
    max_objects: int = 8
    min_visible: float = 0.6

    def __post_init__(self) -> None:
        if not 1 <= self.object_size[0] <= self.object_size[1]:
            raise ValueError(
                f"SyntheticConfig: object_size is {self.object_size}; expected 1 <= smallest <= largest"
            )
        if self.max_objects < 1 or min(self.size) < self.object_size[0]:
            raise ValueError(
                f"SyntheticConfig: size is {self.size}, max_objects {self.max_objects}; expected "
                f"images with room for at least one shape of {self.object_size[0]} pixels"
            )


def _star(corners: int, notch: float = 1.0) -> np.ndarray:
    """Outline with corners at radius 1 and notches at radius ``notch`` between them, (2 * corners, 2)."""
    angles = np.pi * np.arange(2 * corners) / corners
    radii = np.where(np.arange(2 * corners) % 2, notch, 1.0)
    return np.stack([radii * np.sin(angles), -radii * np.cos(angles)], axis=1)


def _regular(corners: int) -> np.ndarray:
    return _star(corners)[::2]


def _plus(arm: float = 0.36) -> np.ndarray:
    quarter = np.array([(arm, -1), (arm, -arm), (1, -arm)])
    turn = np.array([[0, 1], [-1, 0]])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


SHAPES: dict[str, tuple[np.ndarray, ...]] = {
    "circle": (_regular(48),),
    "cross": (_plus(),),
    "ring": (_regular(48), 0.55 * _regular(48)),
    "square": (_regular(4),),
    "star": (_star(5, notch=0.42),),
    "triangle": (_regular(3),),
}
"""Class -> its outline, a polygon (K, 2) around the origin; a second polygon is a hole."""

CATEGORIES = Categories(tuple(SHAPES))
"""The classes of the generated images."""


def shape_mask(rng: np.random.Generator, name: str, size: float) -> np.ndarray:
    """Draw one shape, randomly rotated and slightly flattened, whose longer side is ``size`` pixels.

    Returns:
        The coverage of each pixel by the shape, uint8 (h, w), cropped to the pixels that it touches.
    """
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    flatten = np.array([1.0, rng.uniform(0.75, 1.0)])
    outlines = [(outline * flatten) @ turn for outline in SHAPES[name]]
    low, high = outlines[0].min(axis=0), outlines[0].max(axis=0)
    scale = size / (high - low).max()
    shift = rng.uniform(0, 1, 2) - scale * low
    width, height = np.ceil(scale * (high - low)).astype(int) + 2

    canvas = Image.new("L", (int(width) * _SUBPIXELS, int(height) * _SUBPIXELS))
    for outline, fill in zip(outlines, (255, 0), strict=False):
        # PIL's origin is the center of the first subpixel
        corners = (scale * outline + shift) * _SUBPIXELS - 0.5
        ImageDraw.Draw(canvas).polygon([tuple(corner) for corner in corners.tolist()], fill=fill)
    mask = canvas.reduce(_SUBPIXELS)
    return np.asarray(mask.crop(mask.getbbox()))


@dataclass(frozen=True)
class _Place:
    """The rows and columns of a shape, and its mask, clipped to the image."""

    rows: slice
    columns: slice
    mask: np.ndarray  # (h, w) uint8

    @property
    def box(self) -> tuple[int, int, int, int]:
        return self.columns.start, self.rows.start, self.columns.stop, self.rows.stop


def synthetic_image(seed: int, index: int, config: SyntheticConfig | None = None) -> Record:
    """Draw image ``index`` of series ``seed``.

    A box covers all pixels of the image that its shape touches, also those hidden by other shapes.
    """
    config = config or SyntheticConfig()
    height, width = config.size
    rng = np.random.default_rng([seed, index])
    canvas = _background(rng, height, width)  # (3, H, W) float32
    owner = np.full((height, width), -1)  # index of the shape that is visible at each pixel
    places: list[_Place] = []
    labels: list[int] = []

    smallest, largest = config.object_size
    limit = max(smallest, min(largest, 0.9 * min(height, width)))
    sizes = np.exp(rng.uniform(np.log(smallest), np.log(limit), rng.integers(1, config.max_objects + 1)))
    for size in np.sort(sizes)[::-1]:  # large ones first, so that they do not hide small ones
        label = int(rng.integers(len(CATEGORIES)))
        mask = shape_mask(rng, CATEGORIES.names[label], size)
        place = _find_place(rng, mask, owner, places, config.min_visible)
        if place is not None:
            _paint(rng, canvas[:, place.rows, place.columns], place.mask)
            owner[place.rows, place.columns][place.mask > 0] = len(places)
            places.append(place)
            labels.append(label)

    return Record(
        name=f"{index:06d}",
        size=(width, height),
        boxes=np.array([place.box for place in places], dtype=np.float32).reshape(-1, 4),
        labels=np.array(labels, dtype=np.int64),
        ignore=np.zeros(len(labels), dtype=bool),
        image=_expose(rng, canvas),
    )


def _find_place(
    rng: np.random.Generator, mask: np.ndarray, owner: np.ndarray, places: list[_Place], min_visible: float
) -> _Place | None:
    """A random place for a mask, at most a quarter of it outside the image on each side; None if no try fits."""
    (h, w), (height, width) = mask.shape, owner.shape
    needed = [min_visible * np.count_nonzero(place.mask) for place in places]
    for _ in range(_TRIES):
        top = int(rng.integers(-h // 4, height - 3 * h // 4))
        left = int(rng.integers(-w // 4, width - 3 * w // 4))
        place = _clip(mask, top, left, height, width)
        if np.count_nonzero(place.mask) < min_visible * np.count_nonzero(mask):
            continue
        covered = owner[place.rows, place.columns][place.mask > 0]
        touched = np.unique(covered[covered >= 0])
        if all(np.count_nonzero(owner == i) - np.count_nonzero(covered == i) >= needed[i] for i in touched):
            return place
    return None


def _clip(mask: np.ndarray, top: int, left: int, height: int, width: int) -> _Place:
    """Crop a mask to the image, then to the pixels that it touches."""
    mask = mask[max(0, -top) : height - top, max(0, -left) : width - left]
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    mask = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    y, x = max(0, top) + int(rows[0]), max(0, left) + int(columns[0])
    return _Place(slice(y, y + mask.shape[0]), slice(x, x + mask.shape[1]), mask)


def _background(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Colored clouds, with stripes, checks or nothing over them, (3, H, W) float32."""
    cells = rng.integers(0, 256, (*rng.integers(2, 10, 2), 3), dtype=np.uint8)
    clouds = np.asarray(Image.fromarray(cells).resize((width, height), Image.Resampling.BICUBIC))
    canvas = clouds.transpose(2, 0, 1).astype(np.float32, order="C") - 128
    canvas *= np.float32(rng.uniform(0.1, 0.4))
    canvas += _color(rng, 40, 215)

    y, x = np.ogrid[:height, :width]
    period = int(rng.integers(6, 40))
    slope_y, slope_x = rng.integers(-2, 3, 2)
    stripes = (slope_y * y + slope_x * x) // period % 2
    checks = (y // period + x // period) % 2
    pattern = (stripes, checks, np.zeros((1, 1)))[rng.integers(3)]
    canvas += pattern.astype(np.float32) * _color(rng, -35, 35)
    return canvas


def _color(rng: np.random.Generator, low: float, high: float) -> np.ndarray:
    return rng.uniform(low, high, (3, 1, 1)).astype(np.float32)


def _paint(rng: np.random.Generator, canvas: np.ndarray, mask: np.ndarray) -> None:
    """Paint a shape in one color with a linear shade on this part of the canvas, in place."""
    ground = canvas.mean(axis=(1, 2), keepdims=True)
    color = _color(rng, 0, 255)
    while np.abs(color - ground).max() < _MIN_CONTRAST:
        color = _color(rng, 0, 255)
    y, x = (np.linspace(-0.5, 0.5, side, dtype=np.float32) for side in mask.shape)
    slope_y, slope_x = rng.uniform(-25, 25, 2).astype(np.float32)
    paint = color + slope_y * y[:, None] + slope_x * x
    canvas += mask / np.float32(255) * (paint - canvas)


def _expose(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """The canvas with random contrast, brightness and noise, (3, H, W) uint8."""
    gain, offset = np.float32(rng.uniform(0.6, 1.15)), np.float32(rng.uniform(-20, 30))
    noise = int(rng.integers(0, 13))
    grain = rng.integers(-noise, noise + 1, canvas.shape, dtype=np.int8)
    return np.clip(canvas * gain + offset + grain, 0, 255).astype(np.uint8)


def synthetic_dataset(
    count: int, seed: int = 0, first: int = 0, config: SyntheticConfig | None = None
) -> DetectionDataset:
    """A dataset of the images ``first`` to ``first + count - 1`` of series ``seed``, kept in memory."""
    return DetectionDataset([synthetic_image(seed, first + i, config) for i in range(count)], CATEGORIES)


def write_voc(
    root: str | Path,
    splits: Mapping[str, int],
    seed: int = 0,
    config: SyntheticConfig | None = None,
    suffix: str = ".jpg",
) -> None:
    """Write generated images in VOC format.

    Args:
        root: the folder to create; it appears once it is complete.
        splits: split -> number of images, such as ``{"train": 400, "test": 100}``. No image is in two splits.
        seed: see :func:`synthetic_image`.
        config: see :func:`synthetic_image`.
        suffix: ``.jpg`` or ``.png``.

    Raises:
        DataError: ``root`` exists and is not an empty folder.
    """
    with new_folder(root) as folder:
        for name in ("Annotations", "ImageSets/Main", "JPEGImages"):
            (folder / name).mkdir(parents=True)
        first = 0
        for split, count in splits.items():
            names = []
            for index in range(first, first + count):
                record = synthetic_image(seed, index, config)
                names.append(record.name)
                file = folder / "JPEGImages" / f"{record.name}{suffix}"
                save_image(record, file)
                xml = to_xml(record, CATEGORIES.names, file.name)
                xml.write(folder / "Annotations" / f"{record.name}.xml")
            (folder / "ImageSets" / "Main" / f"{split}.txt").write_text(
                "".join(f"{name}\n" for name in names)
            )
            first += count


def save_image(record: Record, file: Path) -> None:
    """Write a generated image in the format of the file's suffix."""
    assert isinstance(record.image, np.ndarray)  # a path only for images that were read
    Image.fromarray(record.image.transpose(1, 2, 0)).save(file, quality=92)
