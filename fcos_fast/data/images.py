"""Image files: opening them safely, their upright size, and their pixels as RGB."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .checks import MAX_PIXELS, DataError
from .files import open_regular
from .jpeg import completed

_QUARTER_TURNS = (5, 6, 7, 8)  # of EXIF's orientations
_REPLACE = "replace it or take it out of the data set"


@contextmanager
def open_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Open an image file, of which only the header is read as yet.

    A JPEG that lacks its end is completed, so that it decodes as far as it goes and is grey beyond, as viewers show it.

    Raises:
        DataError: the file is missing, empty, damaged, not a regular file, no image, or has more than ``max_pixels``,
            noticed now or while it is decoded.
    """
    try:
        with _without_pillows_limit, open_regular(path) as file, Image.open(completed(file)) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise DataError(
                    f"{path}: has {width}x{height} = {width * height} pixels, more than {max_pixels}; allow as many "
                    f"with max_pixels (--data.max_pixels) or {_REPLACE}"
                )
            yield image
    except DataError:
        raise
    except UnidentifiedImageError:
        what = "is no image" if Path(path).stat().st_size else "is an empty file"
        raise DataError(f"{path}: {what}; {_REPLACE}") from None
    except Exception as error:  # of any type: decoders meet damaged files with what they happen to run into
        reason = str(error) or type(error).__name__
        raise DataError(f"{path}: cannot be read ({reason}); {_REPLACE}") from None


class _WithoutPillowsLimit:
    """Pillow's limit of pixels is one number for the whole process; ours replaces it while files are read here."""

    def __init__(self):
        self.lock = threading.Lock()
        self.readers = 0
        self.limit: int | None = None

    def __enter__(self):
        with self.lock:
            if self.readers == 0:
                self.limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self.readers += 1

    def __exit__(self, *error):
        with self.lock:
            self.readers -= 1
            if self.readers == 0:
                Image.MAX_IMAGE_PIXELS = self.limit


_without_pillows_limit = _WithoutPillowsLimit()


def image_size(path: str | Path, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Read (width, height) of the upright image from its header alone; errors as :func:`open_image`."""
    with open_image(path, max_pixels) as image:
        # Pillow's TIFF reader turns the image itself, and some versions its size before that.
        width, height = image.size if image.format != "TIFF" else (image.tag_v2[256], image.tag_v2[257])
        turned = image.getexif().get(ExifTags.Base.Orientation) in _QUARTER_TURNS
        return (height, width) if turned else (width, height)


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Decode an image file to a uint8 (3, H, W) RGB tensor, upright by its EXIF orientation; see :func:`to_rgb`.

    Raises:
        DataError: as :func:`open_image`.
    """
    with open_image(path, max_pixels) as image:
        ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image)


def upright(image: Image.Image) -> Image.Image:
    """A Pillow image turned by its EXIF orientation; itself where there is nothing to turn."""
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    return ImageOps.exif_transpose(image) if turned else image


def to_rgb(image: Image.Image) -> Tensor:
    """A Pillow image of any mode as a uint8 (3, H, W) RGB tensor.

    Grey values of 16 bits lose the lower 8. Of other integers, 0 to 255 are kept and up to 65535 are taken for 16 bits.
    Floats from 0 to 1 are multiplied by 255, up to 255 they are rounded, up to 65535 they are taken for 16 bits. The
    range is that of the image's own values.

    Raises:
        ValueError: grey values outside these ranges.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        image = Image.fromarray(_scaled(np.asarray(image)))
    pixels = np.array(image.convert("RGB"))  # (H, W, 3)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _scaled(grey: np.ndarray) -> np.ndarray:
    """uint8 of int32 or float32 grey values."""
    low, high = grey.min().item(), grey.max().item()
    is_float = grey.dtype.kind == "f"
    if low >= 0 and high <= 1 and is_float:
        grey = grey * 255
    elif low >= 0 and 255 < high <= 65535:
        grey = grey / 257 if is_float else grey >> 8
    elif not (low >= 0 and (2 if is_float else 0) <= high <= 255):  # between 1 and 2 either could be meant
        ranges = "0 to 1, 0 to 255 or 0 to 65535" if is_float else "0 to 255 or 0 to 65535"
        raise ValueError(f"its grey values reach from {low:g} to {high:g}; expected {ranges}")
    return np.round(grey).astype(np.uint8)
