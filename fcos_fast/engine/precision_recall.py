"""Precision, recall and F1 of the detections of one class at IoU 0.5, over recall and over the score threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RECALLS = np.linspace(0, 1, 101)
"""Recalls of the precision-recall curve, as in COCO's evaluation."""

THRESHOLDS = np.arange(1001) / 1000
"""Score thresholds among which the best is chosen."""


@dataclass(frozen=True)
class Curves:
    """Precision, recall and F1 of a class, or their mean over classes; NaN without an object or without any F1 above 0.

    Attributes:
        objects: number of objects that are not ignored.
        ap50: area below the precision-recall curve, as in COCO's evaluation.
        threshold: score threshold with the highest F1, a multiple of 0.001. Within a range of equal F1, its middle.
        f1, precision, recall: at that threshold.
        precisions: precision at recalls 0, 0.01, ..., 1: the highest at this or any higher recall.
        f1s: F1 at thresholds 0, 0.01, ..., 1.
    """

    objects: int
    ap50: float
    threshold: float
    f1: float
    precision: float
    recall: float
    precisions: tuple[float, ...]
    f1s: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Counts:
    """Precision and recall of one class at each of :data:`THRESHOLDS`, and precision at each of :data:`RECALLS`."""

    objects: int
    precisions: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


def ap50(scores: np.ndarray, true: np.ndarray, objects: int) -> float:
    """Average precision at one IoU threshold, as in COCO's evaluation.

    Args:
        scores: (N,) of the detections of one class; of equal scores the first counts as the higher one.
        true: (N,) bool, true positives.
        objects: number of objects, above 0.
    """
    return float(precision_at_recalls(scores, true, objects).mean())


def precision_at_recalls(scores: np.ndarray, true: np.ndarray, objects: int) -> np.ndarray:
    """The highest precision at each of :data:`RECALLS` or a higher one; arguments as for :func:`ap50`."""
    hits = np.cumsum(true[np.argsort(-scores, kind="stable")])
    precision = hits / np.arange(1, len(hits) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return np.append(precision, 0.0)[np.searchsorted(hits / objects, RECALLS)]


def count(scores: np.ndarray, true: np.ndarray, objects: int) -> Counts:
    """Count what detections with at least a score find; arguments as for :func:`ap50`."""
    shown = _from(scores, THRESHOLDS)
    hits = _from(scores[true], THRESHOLDS)
    precision = np.where(shown > 0, hits / np.maximum(shown, 1), 1.0)
    return Counts(
        objects,
        precision_at_recalls(scores, true, objects),
        precision,
        hits / objects,
        2 * hits / (shown + objects),
    )


def curves(counts: Sequence[Counts]) -> Curves:
    """The curves of one class, or the mean over several; without any, all NaN."""
    if not counts:
        return Curves(0, math.nan, math.nan, math.nan, math.nan, math.nan, (), ())
    precision, recall, f1, precisions = (
        np.mean([getattr(c, name) for c in counts], axis=0)
        for name in ("precision", "recall", "f1", "precisions")
    )
    at = _middle_of_best(f1)
    has_best = f1[at] > 0
    return Curves(
        objects=sum(c.objects for c in counts),
        ap50=float(precisions.mean()),
        threshold=float(THRESHOLDS[at]) if has_best else math.nan,
        f1=float(f1[at]) if has_best else math.nan,
        precision=float(precision[at]) if has_best else math.nan,
        recall=float(recall[at]) if has_best else math.nan,
        precisions=tuple(precisions.tolist()),
        f1s=tuple(f1[::10].tolist()),
    )


def _middle_of_best(f1: np.ndarray) -> int:
    """Index in the middle of the first range of the highest value."""
    best = np.flatnonzero(f1 >= f1.max() - 1e-12)
    run = best[: np.argmax(np.append(np.diff(best) > 1, True)) + 1]
    return int(run[len(run) // 2])


def _from(scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Number of scores of at least each threshold."""
    return len(scores) - np.searchsorted(np.sort(scores), thresholds)
