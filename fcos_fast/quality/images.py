"""Every image file decoded once: which are damaged, and what finding duplicates needs of the others."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from fcos_fast.data import DataError
from fcos_fast.data.files import open_regular
from fcos_fast.data.images import open_image, stored_size, to_rgb, upright
from fcos_fast.engine.progress import Progress
from fcos_fast.models.optional import import_optional

THUMBNAIL = 16
"""Side of the thumbnails that are compared, in pixels."""

_REDUCED = 64  # the perceptual hash reads 32x32 pixels; reducing first is faster and changes few bits
_CHUNK = 16


@dataclass(frozen=True, eq=False)
class ScannedImage:
    """What is kept of an image.

    Attributes:
        error: why it cannot be read; empty if it can. The other values are then empty.
        digest: hash of the bytes of the file.
        hash: perceptual hash, 64 bits.
        thumbnail: (THUMBNAIL, THUMBNAIL, 3) uint8, upright.
        size: (width, height) as stored, before the rotation by EXIF.
        orientation: EXIF's orientation, 1 to 8; 1 is upright.
    """

    error: str = ""
    digest: bytes = b""
    hash: int = 0
    thumbnail: np.ndarray | None = None
    size: tuple[int, int] = (0, 0)
    orientation: int = 1

    @property
    def upright_size(self) -> tuple[int, int]:
        """(width, height) after the rotation by EXIF."""
        return self.size[::-1] if self.orientation >= 5 else self.size


def scan(path: Path, max_pixels: int) -> ScannedImage:
    """Read and decode one file."""
    phash = import_optional("imagehash", "finding duplicate images needs", "check").phash
    try:
        with open_regular(path) as file:
            data = file.read()
        with open_image(data, max_pixels, str(path)) as image:
            size, orientation = stored_size(image), image.getexif().get(ExifTags.Base.Orientation, 1)
            small = Image.fromarray(to_rgb(upright(image))).resize((_REDUCED, _REDUCED), Image.Resampling.BOX)
    except DataError as error:
        return ScannedImage(str(error).removeprefix(f"{path}: "))
    except OSError as error:
        return ScannedImage(f"cannot be read ({error.strerror or error}); replace or remove it")
    bits = np.packbits(phash(small).hash)
    thumbnail = small.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return ScannedImage(
        digest=hashlib.blake2b(data, digest_size=16).digest(),
        hash=int.from_bytes(bits.tobytes(), "big"),
        thumbnail=np.asarray(thumbnail),
        size=size,
        orientation=orientation if orientation in range(1, 9) else 1,
    )


def scan_all(paths: Sequence[Path], max_pixels: int) -> list[ScannedImage]:
    """:func:`scan` of all files, in threads: Pillow decodes without Python's lock."""
    import_optional("imagehash", "finding duplicate images needs", "check")
    chunks = [paths[i : i + _CHUNK] for i in range(0, len(paths), _CHUNK)]
    found: list[ScannedImage] = []
    threads = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(threads) as pool, Progress(len(chunks), "decode", _CHUNK) as progress:
        for part in pool.map(lambda chunk: [scan(path, max_pixels) for path in chunk], chunks):
            found += part
            progress.update()
    return found
