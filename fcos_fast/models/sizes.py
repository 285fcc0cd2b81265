"""The size in which a detector sees an image. Needs no torch, like the rest of the way to an exported model."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fcos_fast.models.config import DetectorConfig

Size = tuple[int, int]
"""(height, width) in pixels."""


def resized(size: Size, min_size: int, max_size: int | None) -> Size:
    """``size`` with its shorter side scaled to ``min_size``, or less to keep the longer side within ``max_size``."""
    scale = min_size / min(size)
    if max_size is not None:
        scale = min(scale, max_size / max(size))
    height, width = (max(1, math.floor(side * scale)) for side in size)
    return height, width


def detection_size(size: Size, config: DetectorConfig) -> Size:
    """The size to which an image of ``size`` is resized for detection."""
    min_size = config.min_size[-1] if isinstance(config.min_size, tuple) else config.min_size
    return size if min_size is None else resized(size, min_size, config.max_size)


def largest_size(config: DetectorConfig) -> Size | None:
    """The padded size of the largest image that ``min_size`` and ``max_size`` allow; None if they are not set."""
    min_size = config.min_size[-1] if isinstance(config.min_size, tuple) else config.min_size
    if min_size is None:
        return None
    long = config.max_size or min_size
    return padded((min(min_size, long), long), config.size_divisor)


def padded(size: Size, divisor: int) -> Size:
    """``size`` rounded up to multiples of ``divisor``."""
    height, width = (math.ceil(side / divisor) * divisor for side in size)
    return height, width


def batch_size(sizes: Sequence[Size], divisor: int) -> Size:
    """The size of a batch with images of these ``sizes``."""
    heights, widths = zip(*sizes, strict=True)
    return padded((max(heights), max(widths)), divisor)


def batches(sizes: Sequence[Size], config: DetectorConfig) -> list[list[int]]:
    """Indices of the images of these ``sizes`` that are evaluated together, as one list per batch."""
    if config.batching == "pad":
        return [list(range(len(sizes)))]
    groups: list[tuple[Size, list[int]]] = []  # no dictionary: symbolic sizes of torch.export have no hash
    for i, size in enumerate(sizes):
        seen = padded(size, config.size_divisor)
        same = [indices for other, indices in groups if other == seen]
        if same:
            same[0].append(i)
        else:
            groups.append((seen, [i]))
    return [indices for _, indices in groups]
