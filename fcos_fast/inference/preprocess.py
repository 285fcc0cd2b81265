"""Images to the input of an exported detector, with NumPy alone, as the model's own ``Transform`` does it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fcos_fast.models.sizes import Size, batch_size


def resize(image: np.ndarray, size: Size) -> np.ndarray:
    """Resize an image (H, W, 3) of floats to ``size`` by bilinear interpolation without antialiasing.

    As ``torch.nn.functional.interpolate(mode="bilinear", align_corners=False)``; the operations are in its order.
    """
    if size == image.shape[:2]:
        return image
    top, bottom, down = _neighbors(image.shape[0], size[0])
    left, right, across = _neighbors(image.shape[1], size[1])
    rows = image[:, left] * (1 - across)[:, None] + image[:, right] * across[:, None]
    down = down[:, None, None]
    return rows[top] * (1 - down) + rows[bottom] * down


def _neighbors(old: int, new: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For each of ``new`` pixels the two of ``old`` around it, and the weight of the second."""
    scale = np.float64(np.float32(old) / np.float32(new))
    # float64: torch rounds scale * pixel - 0.5 once
    position = np.maximum(scale * (np.arange(new) + 0.5) - 0.5, 0).astype(np.float32)
    first = position.astype(np.int64)
    return first, np.minimum(first + 1, old - 1), position - first.astype(np.float32)


def batch(images: Sequence[np.ndarray], sizes: Sequence[Size], divisor: int) -> np.ndarray:
    """Resize and pad images to one size, a multiple of ``divisor``.

    Args:
        images: RGB (H, W, 3), uint8 or float32 in [0, 1].
        sizes: size of each image after resizing.
        divisor: ``DetectorConfig.size_divisor``.

    Returns:
        (B, 3, H, W) float32 in [0, 1], each image in the upper left corner.
    """
    images_out = np.zeros((len(images), 3, *batch_size(sizes, divisor)), np.float32)
    for row, image, (height, width) in zip(images_out, images, sizes, strict=True):
        row[:, :height, :width] = resize(_unit(image), (height, width)).transpose(2, 0, 1)
    return images_out


def _unit(image: np.ndarray) -> np.ndarray:
    """A uint8 image as float32 in [0, 1]; a float32 image as it is."""
    return image.astype(np.float32) / np.float32(255) if image.dtype == np.uint8 else image
