"""Image files: opened safely, their upright size, and their pixels as RGB."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from .checks import MAX_PIXELS, DataError
from .files import open_regular
from .jpeg import completed

_QUARTER_TURNS = (5, 6, 7, 8)  # values of EXIF's orientation
_REPLACE = "replace or remove it"


@contextmanager
def open_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Open an image file and read its header.

    A truncated JPEG is completed, so that it decodes; the missing part is gray, as in image viewers.

    Raises:
        DataError: the file is missing, empty, damaged, not a regular file, not an image, or has more than
            ``max_pixels``; raised here or when the image is decoded.
    """
    try:
        with _without_pillows_limit, open_regular(path) as file, Image.open(completed(file)) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise DataError(
                    f"{path}: has {width}x{height} = {width * height} pixels, more than {max_pixels}; raise "
                    "max_pixels (--data.max_pixels), replace the image or remove it from the dataset"
                )
            yield image
    except DataError:
        raise
    except UnidentifiedImageError:
        what = "is not an image" if Path(path).stat().st_size else "is an empty file"
        raise DataError(f"{path}: {what}; {_REPLACE}") from None
    except Exception as error:  # of any type: decoders raise all kinds of errors on damaged files
        reason = str(error) or type(error).__name__
        raise DataError(f"{path}: cannot be read ({reason}); {_REPLACE}") from None


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
        width, height = image.size
        if isinstance(image, TiffImageFile):  # whose size is the upright one in some versions of Pillow
            width, height = image.tag_v2[ExifTags.Base.ImageWidth], image.tag_v2[ExifTags.Base.ImageLength]
        turned = image.getexif().get(ExifTags.Base.Orientation) in _QUARTER_TURNS
        return (height, width) if turned else (width, height)


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Decode an image file to a uint8 (3, H, W) RGB tensor, upright by its EXIF orientation; see :func:`to_rgb`.

    Raises:
        DataError: as for :func:`open_image`.
    """
    with open_image(path, max_pixels) as image:
        ImageOps.exif_transpose(image, in_place=True)
        return to_rgb(image)


def upright(image: Image.Image) -> Image.Image:
    """A Pillow image rotated by its EXIF orientation; the same object if it is upright."""
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    return ImageOps.exif_transpose(image) if turned else image


def to_rgb(image: Image.Image) -> Tensor:
    """A Pillow image of any mode as a uint8 (3, H, W) RGB tensor.

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
    pixels = np.array(image.convert("RGB"))  # (H, W, 3)
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


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
