"""Video files for tests."""

from __future__ import annotations

import struct
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

NTSC = Fraction(30000, 1001)


def write_frames(
    path: Path, frames: Iterable[np.ndarray], rate: Fraction = NTSC, codec: str = "mpeg4"
) -> Path:
    """A video of frames (H, W, 3) by PyAV."""
    av = pytest.importorskip("av", reason="writes videos; install fcos_fast[video]")
    with av.open(str(path), "w") as container:
        stream = None
        for frame in frames:
            if stream is None:
                stream = container.add_stream(codec, rate=rate)
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
                stream.bit_rate = 4_000_000
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def turn(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Set the matrix in an MP4's track header (ISO/IEC 14496-12, 8.3.2): a point (x, y) is shown at
    (a x + c y, b x + d y)."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 4 + 40  # version 0: the matrix follows 40 bytes
    assert struct.unpack(">9i", content[start : start + 36]) == (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    content[start : start + 36] = struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
