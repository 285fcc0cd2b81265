"""Images of any kind as RGB arrays. Needs no torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np

from fcos_fast.data.checks import MAX_PIXELS
from fcos_fast.data.images import read_pixels, to_rgb, upright

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

ImageLike: TypeAlias = Union[str, Path, bytes, "Image.Image", np.ndarray, "Tensor"]
"""A file, the bytes of a file, a Pillow image, an array (H, W, 3), or a tensor (3, H, W).

The EXIF orientation of files and Pillow images is applied. Arrays and tensors are uint8 or float in [0, 1], and RGB:
not OpenCV's BGR. Those with one channel, (H, W) or (H, W, 1), are gray; a fourth channel is transparency, which is
ignored.
"""

_OVERSHOOT = (
    -0.5,
    2.0,
)  # floats around [0, 1] that resampling and color jitter produce; more is another range


def as_array(image: ImageLike, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Convert any :data:`ImageLike` to an upright RGB array (H, W, 3), uint8 or float32 in [0, 1].

    Args:
        image: the image.
        max_pixels: files with more pixels are rejected.

    Raises:
        ValueError, TypeError: not an image; the message names the file, the shape or the dtype.
    """
    if isinstance(image, (str, Path, bytes)):
        return read_pixels(image, max_pixels)
    if isinstance(image, np.ndarray):
        return _rgb(image, f"an array of shape {image.shape} and dtype {image.dtype}", "(H, W, 3)")
    if is_tensor(image):
        return _from_tensor(image)
    photo: Any = image
    if hasattr(photo, "convert"):  # of Pillow
        return to_rgb(upright(photo))
    raise TypeError(
        f"got a {type(image).__name__}; expected a file name, bytes of a file, a Pillow image, an array or a tensor"
    )


def is_tensor(value: object) -> bool:
    """Whether ``value`` is a tensor; torch is not imported, since without it nothing is one."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


def _from_tensor(image: Any) -> np.ndarray:
    """An array (H, W, 3) of a tensor (3, H, W)."""
    about = f"a tensor of shape {tuple(image.shape)} and dtype {str(image.dtype).removeprefix('torch.')}"
    image = image.detach().cpu()
    if image.is_floating_point():
        image = image.float()  # NumPy has no bfloat16
    return _rgb(image.movedim(0, -1).numpy() if image.ndim == 3 else image.numpy(), about, "(3, H, W)")


def _rgb(pixels: np.ndarray, about: str, expected: str) -> np.ndarray:
    """A copy of ``pixels`` (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) as (H, W, 3), uint8 or float32.

    A copy, because cameras write the next image into the same memory.

    Raises:
        ValueError, TypeError: another shape, dtype or range; the message is ``about`` the image as it was given.
    """
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    if pixels.ndim != 3 or pixels.shape[2] not in (1, 3, 4) or 0 in pixels.shape:
        raise ValueError(f"got {about}; expected one image {expected}, RGB, not empty")
    if pixels.dtype.kind == "f":
        pixels = _unit(pixels.astype(np.float32), about)
    elif pixels.dtype != np.uint8:
        raise TypeError(f"got {about}; expected uint8, or floating point in [0, 1]")
    return np.array(np.broadcast_to(pixels[..., :3], (*pixels.shape[:2], 3)), order="C")


def _unit(pixels: np.ndarray, about: str) -> np.ndarray:
    low, high = pixels.min(), pixels.max()
    if not (low >= _OVERSHOOT[0] and high <= _OVERSHOOT[1]):  # also for NaN
        raise ValueError(
            f"got {about} with values from {low:g} to {high:g}; floating-point images are in [0, 1]: "
            "divide by 255, or pass uint8; do not normalize them"
        )
    return pixels
