"""Boxes as short decimal numbers that read back as exactly the same float32 boxes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

_MOST_DECIMALS = 16


def shortest(values: np.ndarray) -> np.ndarray:
    """float64 for float32 corners or areas: each the shortest number that rounds to the same float32."""
    return _shortest(
        lambda decimals: _rounded(values.astype(np.float64), decimals),
        lambda numbers: numbers.astype(np.float32) == values,
    )


def sides(starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """float64 widths or heights: ``starts`` (float64) plus them are ``ends`` (float32), and they are short."""
    return _shortest(
        lambda decimals: _rounded(ends.astype(np.float64) - starts, decimals),
        lambda numbers: (starts + numbers).astype(np.float32) == ends,
    )


def relative(starts: np.ndarray, ends: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(N, 2) float64 for one axis of N boxes: YOLO's center and side as fractions of the image's side.

    A YOLO file cannot hold every box: a corner much nearer to 0 than to the other end of the image is lost in the
    rounding of the center.

    Args:
        starts, ends: (N,) float32 in pixels.
        lengths: (N,) sides of the images in pixels.
    """
    start, end = starts.astype(np.float64) / lengths, ends.astype(np.float64) / lengths

    def numbers(decimals: int | None) -> np.ndarray:
        side = _rounded(end - start, decimals)
        # One more decimal than the side: the half of the side then is exact, and so is a box that starts at 0.
        center = _rounded(start + side / 2, None if decimals is None else decimals + 1)
        return np.stack((center, side), axis=1)

    def hold(numbers: np.ndarray) -> np.ndarray:
        found = from_relative(numbers, lengths)
        same: np.ndarray = (found == np.stack((starts, ends), axis=1)).all(axis=1, keepdims=True)
        return same

    return _shortest(numbers, hold, first=6)


def from_relative(numbers: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(N, 2) float32 starts and ends in pixels, as the YOLO reader computes them from (N, 2) centers and sides."""
    center, side = numbers.T
    ends = np.stack((center - side / 2, center + side / 2), axis=1) * lengths[:, None]
    return np.clip(ends.astype(np.float32), 0, lengths[:, None].astype(np.float32))


def text(number: float) -> str:
    """A number as decimal digits without exponent; an integer without point."""
    if number.is_integer():
        return str(int(number))
    digits = repr(number)
    return digits if "e" not in digits else np.format_float_positional(number, trim="-")


def _rounded(numbers: np.ndarray, decimals: int | None) -> np.ndarray:
    rounded: np.ndarray = numbers if decimals is None else np.round(numbers, decimals)
    return rounded


def _shortest(
    numbers: Callable[[int | None], np.ndarray], hold: Callable[[np.ndarray], np.ndarray], first: int = 0
) -> np.ndarray:
    """The numbers with the fewest decimals that ``hold`` accepts, each row or element by itself, or unrounded."""
    result = numbers(None)
    missing = np.ones_like(hold(result))
    for decimals in range(first, _MOST_DECIMALS + 1):
        rounded = numbers(decimals)
        good = missing & hold(rounded)
        result = np.where(good, rounded, result)
        missing &= ~good
        if not missing.any():
            break
    return result
