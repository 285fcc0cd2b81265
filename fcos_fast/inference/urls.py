"""Images from the web."""

from __future__ import annotations

import time
from http.client import HTTPException
from urllib.request import Request, urlopen

import numpy as np

from fcos_fast.data.checks import MAX_PIXELS, DataError
from fcos_fast.data.images import read_pixels

MAX_BYTES = 64 * 2**20
"""The largest file that is downloaded."""

TIMEOUT = 30.0
"""Seconds in which a file must arrive, and between two packets of it."""


def download(
    url: str, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES, timeout: float = TIMEOUT
) -> np.ndarray:
    """Download an image file and decode it to a uint8 (H, W, 3) RGB array.

    Raises:
        DataError: the server does not answer in time, answers with an error, or sends no image or too large a one.
    """
    try:
        content = _content(url, max_bytes, timeout)
    except DataError:
        raise
    except (OSError, HTTPException, ValueError) as error:  # no connection, no HTTP, no URL
        raise DataError(f"{url}: cannot be downloaded ({error}); check the address") from None
    return read_pixels(content, max_pixels, name=url)


def _content(url: str, max_bytes: int, timeout: float) -> bytes:
    end = time.monotonic() + timeout
    with urlopen(Request(url, headers={"User-Agent": "fcos_fast"}), timeout=timeout) as answer:
        parts, size = [], 0
        while part := answer.read1(1 << 16):
            parts.append(part)
            size += len(part)
            if size > max_bytes:
                raise DataError(f"{url}: is larger than {max_bytes} bytes; download it and give the file")
            if time.monotonic() > end:
                raise DataError(f"{url}: did not arrive in {timeout:g} s; download it and give the file")
        announced = answer.headers["Content-Length"]
    if announced is not None and size < int(announced):
        raise DataError(f"{url}: ended after {size} of {announced} bytes; try again")
    return b"".join(parts)
