"""Image files: opened safely, their upright size, and their pixels as RGB arrays. Needs no torch."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from .checks import MAX_PIXELS, DataError
from .files import open_regular
from .jpeg import completed

_QUARTER_TURNS = (5, 6, 7, 8)  # values of EXIF's orientation
_REPLACE = "replace or remove it"


@contextmanager
def open_image(
    source: str | Path | bytes, max_pixels: int = MAX_PIXELS, name: str | None = None
) -> Iterator[Image.Image]:
    """Open an image file, or the bytes of one, and read its header.

    A truncated JPEG is completed, so that it decodes; the missing part is gray, as in image viewers.

    Raises:
        DataError: the file is missing, empty, damaged, not a regular file, not an image, or has more than
            ``max_pixels``; raised here or when the image is decoded.
    """
    name = name or (f"{len(source)} bytes" if isinstance(source, bytes) else str(source))
    try:
        with _without_pillows_limit, _opened(source) as file, Image.open(completed(file)) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise DataError(
                    f"{name}: has {width}x{height} = {width * height} pixels, more than {max_pixels}; raise "
                    "max_pixels (--data.max_pixels), replace the image or remove it from the dataset"
                )
            yield image
    except DataError:
        raise
    except UnidentifiedImageError:
        size = len(source) if isinstance(source, bytes) else Path(source).stat().st_size
        raise DataError(f"{name}: {'is not an image' if size else 'is an empty file'}; {_REPLACE}") from None
    except Exception as error:  # of any type: decoders raise all kinds of errors on damaged files
        reason = str(error) or type(error).__name__
        raise DataError(f"{name}: cannot be read ({reason}); {_REPLACE}") from None


def _opened(source: str | Path | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else open_regular(source)


class _WithoutPillowsLimit:
    """Disables Pillow's pixel limit, which is global to the process, while images are open here."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.readers = 0
        self.limit: int | None = None

    def __enter__(self) -> None:
        with self.lock:
            if self.readers == 0:
                self.limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self.readers += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.readers -= 1
            if self.readers == 0:
                Image.MAX_IMAGE_PIXELS = self.limit


_without_pillows_limit = _WithoutPillowsLimit()


def image_size(path: str | Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Read (width, height) of the upright image from its header; errors as for :func:`open_image`."""
    with open_image(path, max_pixels) as image:
        width, height = stored_size(image)
        turned = image.getexif().get(ExifTags.Base.Orientation) in _QUARTER_TURNS
        return (height, width) if turned else (width, height)


def stored_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of an image that :func:`open_image` opened, as stored: before the rotation by EXIF."""
    if isinstance(image, TiffImageFile):  # whose size is the upright one in some versions of Pillow
        return image.tag_v2[ExifTags.Base.ImageWidth], image.tag_v2[ExifTags.Base.ImageLength]
    return image.size


def read_pixels(
    source: str | Path | bytes, max_pixels: int = MAX_PIXELS, name: str | None = None
) -> np.ndarray:
    """Decode an image file, or the bytes of one, to a uint8 (H, W, 3) RGB array; see :func:`to_rgb`.

    It is upright by its EXIF orientation. ``name`` stands for the bytes in error messages.

    Raises:
        DataError: as for :func:`open_image`.
    """
    with open_image(source, max_pixels, name) as image:
        ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image)


def upright(image: Image.Image) -> Image.Image:
    """A Pillow image rotated by its EXIF orientation; the same object if it is upright."""
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    return ImageOps.exif_transpose(image) if turned else image


def to_rgb(image: Image.Image) -> np.ndarray:
    """A Pillow image of any mode as a uint8 (H, W, 3) RGB array.

    16-bit gray values keep their upper 8 bits. For other integers and floats the largest value of the image decides:
    integers up to 255 are kept; floats up to 1 are multiplied by 255, and up to 255 they are rounded; both are treated
    as 16-bit values up to 65535.

    Raises:
        ValueError: gray values outside these ranges.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = Image.fromarray(_scaled(np.asarray(image)))
    return np.array(image.convert("RGB"))


def _scaled(gray: np.ndarray) -> np.ndarray:
    """int32 or float32 gray values as uint8."""
    low, high = gray.min().item(), gray.max().item()
    is_float = gray.dtype.kind == "f"
    if low >= 0 and high <= 1 and is_float:
        gray = gray * 255
    elif low >= 0 and 255 < high <= 65535:
        gray = gray / 257 if is_float else gray >> 8
    elif not (low >= 0 and (2 if is_float else 0) <= high <= 255):  # between 1 and 2 both ranges are possible
        ranges = "0 to 1, 0 to 255 or 0 to 65535" if is_float else "0 to 255 or 0 to 65535"
        raise ValueError(f"its gray values range from {low:g} to {high:g}; expected {ranges}")
    return np.round(gray).astype(np.uint8)
