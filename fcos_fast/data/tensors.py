"""Images as tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .checks import MAX_PIXELS
from .images import read_pixels


def read_image(path: str | Path, max_pixels: int = MAX_PIXELS) -> Tensor:
    """Decode an image file to a uint8 (3, H, W) RGB tensor, upright by its EXIF orientation.

    Raises:
        DataError: the file cannot be read, or has more than ``max_pixels``.
    """
    return to_tensor(read_pixels(path, max_pixels))


def to_tensor(pixels: np.ndarray) -> Tensor:
    """An (H, W, 3) array as a contiguous (3, H, W) tensor of the same dtype, which does not share its memory."""
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())
