"""Video files and webcams through PyAV."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fcos_fast.data.checks import MAX_PIXELS, DataError
from fcos_fast.inference.sources import Frame

WEBCAM_FORMAT = "v4l2"
"""FFmpeg's name for the webcams of Linux."""


def import_av() -> Any:
    """PyAV; if it is not installed, a ModuleNotFoundError with the remedy."""
    try:
        import av
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('videos need PyAV; pip install "fcos_fast[video]"', name="av") from error
    return av


def read_video(name: str, max_pixels: int = MAX_PIXELS, webcam: bool = False) -> Iterator[Frame]:
    """Decode the frames of a video file or webcam, turned as the file says.

    Args:
        name: path of the file, or of the webcam's device.
        max_pixels: a video with larger frames is rejected.
        webcam: whether it is a webcam.

    Raises:
        DataError: it is missing, damaged or no video; raised after the frames before the damage.
    """
    av, number = import_av(), 0
    try:
        with av.open(name, format=WEBCAM_FORMAT if webcam else None) as container:
            (stream, *_) = container.streams.video or [None]
            if stream is None:
                raise DataError(f"{name}: has no video stream; replace or remove it")
            stream.thread_type = "AUTO"
            for frame in container.decode(stream):
                if frame.width * frame.height > max_pixels:
                    raise DataError(
                        f"{name}: has {frame.width}x{frame.height} pixels per frame, more than {max_pixels}; "
                        "raise max_pixels"
                    )
                yield Frame(_upright(frame), name, number, frame.time)
                number += 1
    except DataError:
        raise
    except (av.error.FFmpegError, OSError, ValueError) as error:
        place = f"frame {number} cannot be decoded" if number else "cannot be read"
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{name}: {place} ({reason}); replace or remove it") from None


def _upright(frame: Any) -> np.ndarray:
    """The pixels of a frame, rotated as phones note it beside them."""
    pixels = frame.to_ndarray(format="rgb24")
    return np.rot90(pixels, frame.rotation // 90 % 4)
