"""Whether an exported detector detects what its checkpoint does."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fcos_fast.errors import ExportError
from fcos_fast.inference.engine import Engine, RawDetections
from fcos_fast.inference.exported import ExportedEngine

BOX_TOLERANCE = 1e-3
"""Pixels of the image by which a coordinate may differ; or :data:`BOX_SIZE_TOLERANCE`, if that is more."""

BOX_SIZE_TOLERANCE = 1e-5
"""Difference as a fraction of the longer side of the box, for networks that predict the logarithm of a distance.

They multiply the rounding of their sums by the distance. Measured for the preset simpleaicv, with sides up to 320
pixels, on 12 photographs: from the same network in float64, boxes of torch are at most 3.4e-4 pixels away (1.3e-6 of
the side), of ONNX Runtime 3.8e-4 (1.8e-6) and of OpenVINO 1.1e-3 (3.9e-6). Decoding the same outputs in float64 moves
them by 1.5e-5 pixels, so another order of operations there would not bring the runtimes closer.
"""

SCORE_TOLERANCE = 1e-5

BATCH = 3
"""Images per batch; the first image is also detected alone."""


def check_export(original: Engine, exported: ExportedEngine, images: Mapping[str, np.ndarray]) -> int:
    """Compare two engines on images (H, W, 3) by name; returns the number of detections that were compared.

    Raises:
        ExportError: they differ; the message names the first image and what is different.
    """
    names, pixels = list(images), list(images.values())
    batches = [slice(0, 1), *(slice(i, i + BATCH) for i in range(0, len(pixels), BATCH))]
    compared: dict[str, int] = {}
    for batch in batches:
        pairs = zip(original.detect(pixels[batch]), exported.detect(pixels[batch]), strict=True)
        for name, (expected, found) in zip(names[batch], pairs, strict=True):
            what = difference(expected, found, exported.config.max_detections)
            if what is not None:
                raise ExportError(
                    f"the exported detector differs from the original on {name}, in a batch of {len(pixels[batch])}: "
                    f"{what}; no file was written. Try other --images; if it happens again, please report it"
                )
            compared[name] = len(expected.scores)
    return sum(compared.values())


def difference(expected: RawDetections, found: RawDetections, max_detections: int) -> str | None:
    """The first difference in words, or None if labels, their order, boxes and scores are the same.

    Detections may change places if their scores differ by no more than :data:`SCORE_TOLERANCE`: rounding decides their
    order. For the same reason, if there are ``max_detections``, one with the lowest score may be replaced by another
    with that score.
    """
    if len(expected.scores) != len(found.scores):
        return f"{len(found.scores)} detections instead of {len(expected.scores)}"
    wrong = np.flatnonzero(~(np.abs(expected.scores - found.scores) <= SCORE_TOLERANCE))
    if len(wrong):
        i = wrong[0]
        return f"detection {i} has the score {found.scores[i]:.6f} instead of {expected.scores[i]:.6f}"
    free = np.ones(len(found.scores), dtype=bool)
    for i, (box, score, label) in enumerate(zip(*expected, strict=True)):
        same = free & (found.labels == label) & (np.abs(found.scores - score) <= SCORE_TOLERANCE)
        tolerance = max(BOX_TOLERANCE, BOX_SIZE_TOLERANCE * (box[2:] - box[:2]).max())
        same &= (np.abs(found.boxes - box) <= tolerance).all(axis=1)
        if same.any():
            free[same.argmax()] = False
        elif len(expected.scores) < max_detections or score > expected.scores[-1] + SCORE_TOLERANCE:
            return f"detection {i} is {_words(found, i)} instead of {_words(expected, i)}"
    return None


def _words(detections: RawDetections, i: int) -> str:
    box = ", ".join(f"{side:.4f}" for side in detections.boxes[i])
    return f"label {detections.labels[i]} at ({box})"
