"""Video files and webcams through PyAV."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from fcos_fast.data.checks import MAX_PIXELS, DataError
from fcos_fast.engine.files import replacing
from fcos_fast.inference.sources import Frame

WEBCAM_FORMAT = "v4l2"
"""FFmpeg's name for the webcams of Linux."""


ENCODERS = ("libx264", "libopenh264", "mpeg4")
"""H.264, or MPEG-4 if PyAV was built without it."""


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


def video_facts(name: str) -> tuple[Fraction | None, int | None]:
    """Frames per second, and number of frames, of a video file by its header; None for what it does not say.

    Raises:
        ModuleNotFoundError: PyAV is not installed.
    """
    av = import_av()
    try:
        with av.open(name) as container:
            stream = container.streams.video[0]
            return stream.average_rate, stream.frames or None
    except (av.error.FFmpegError, OSError, ValueError, IndexError):  # reading its frames tells why
        return None, None


@contextmanager
def write_video(path: Path, rate: Fraction) -> Iterator[Callable[[np.ndarray, float | None], None]]:
    """Write a video file atomically; yields a function of a frame (H, W, 3) uint8 and its time in seconds.

    Frames are shown at their times, rounded to multiples of 1 / ``rate``; None: one such step after the one before.

    Args:
        path: the file; its suffix decides the container format.
        rate: frames per second.

    Raises:
        ModuleNotFoundError: PyAV is not installed.
        WriteError: the file cannot be written.
    """
    av = import_av()
    encoder = next(name for name in ENCODERS if name in av.codecs_available)
    with replacing(path) as temporary, av.open(str(temporary), "w") as container:
        stream, start, last = container.add_stream(encoder, rate=rate), 0.0, -1

        def write(pixels: np.ndarray, time: float | None) -> None:
            nonlocal start, last
            pixels = _even(pixels)
            if last < 0:
                stream.height, stream.width = pixels.shape[:2]
                stream.pix_fmt = "yuv420p"
                start = time or 0.0
            last = max(last + 1, 0 if time is None else round((time - start) * rate))
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = last, 1 / rate
            container.mux(stream.encode(frame))

        yield write
        container.mux(stream.encode())


def _even(pixels: np.ndarray) -> np.ndarray:
    """``pixels`` with even sides, which yuv420p needs: an odd one is extended by a pixel."""
    height, width = pixels.shape[:2]
    return np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
