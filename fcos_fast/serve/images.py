"""Uploaded images: checked, decoded, and encoded again with the detections drawn."""

from __future__ import annotations

import io
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError

from fcos_fast.data.images import to_rgb, upright

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF")
"""Formats that are decoded, by Pillow's names. Some of Pillow's others run external programs."""


class UploadError(Exception):
    """An upload that is not a usable image.

    Attributes:
        status: HTTP status of the answer.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Decoded(NamedTuple):
    """An upright RGB image.

    Attributes:
        pixels: the image in a form that ``predict`` accepts.
        width: in pixels.
        height: in pixels.
    """

    pixels: Any
    width: int
    height: int


def decode(data: bytes, max_pixels: int) -> Decoded:
    """Decode an image file, upright by its EXIF orientation.

    Raises:
        UploadError: ``data`` is empty, not an image, truncated or damaged, or the image has more than ``max_pixels``,
            which is checked before the pixels are decoded.
    """
    if not data:
        raise UploadError(422, "the file is empty")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise UploadError(
                    413,
                    f"the image has {width}x{height} pixels; at most {max_pixels:,} are accepted, resize it",
                )
            image.load()
            turned = upright(image)
            return Decoded(to_rgb(turned), *turned.size)
    except UploadError:
        raise
    except UnidentifiedImageError:
        raise UploadError(415, f"the file is not an image; send {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError as error:
        raise UploadError(413, f"{error}; resize it") from None
    except Exception as error:  # of any type: decoders raise all kinds of errors on damaged files
        raise UploadError(422, f"the image cannot be decoded: {error or type(error).__name__}") from None


def encode(image: Image.Image, media_type: str) -> bytes:
    """An image as a file of ``media_type``: ``image/png`` or ``image/jpeg``."""
    file = io.BytesIO()
    image.save(file, media_type.removeprefix("image/"), quality=90)  # PNG has no quality and ignores it
    return file.getvalue()
