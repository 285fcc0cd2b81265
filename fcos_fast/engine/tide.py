"""Where average precision is lost: the error types of TIDE (Bolya et al. 2020, arXiv:2008.08115)."""

from __future__ import annotations

import numpy as np

from fcos_fast.engine.matching import IOU, Matching, rows_by_class
from fcos_fast.engine.precision_recall import ap50

ERRORS = {
    "Cls": "right place, wrong class",
    "Loc": "right class, badly placed box",
    "Both": "wrong class and badly placed",
    "Dupe": "second box of an object that has one",
    "Bkg": "no labeled object is there",
    "Miss": "object that was not found",
}
"""Error type -> what it means."""

CLS, LOC, BOTH, DUPE, BKG = range(5)
NO_ERROR = -1


def error_types(m: Matching) -> tuple[np.ndarray, np.ndarray]:
    """The type of error of each false positive, and the object that it concerns.

    Returns:
        (D,) index into :data:`ERRORS`, -1 for no error; (D,) index of the object nearest to a detection of type Cls or
        Loc, -1 for others.
    """
    false = m.match < 0
    det, obj, iou = m.near
    same = m.found.labels[det] == m.objects.labels[obj]
    own_iou, own = _nearest(len(m.found), det[same], obj[same], iou[same])
    other_iou, other = _nearest(len(m.found), det[~same], obj[~same], iou[~same])
    kind = np.full(len(m.found), BKG)
    kind[np.maximum(own_iou, other_iou) > 0] = BOTH
    kind[own_iou >= IOU] = DUPE  # otherwise it would be matched
    kind[other_iou >= IOU] = CLS
    kind[(own_iou > 0) & (own_iou < IOU)] = LOC
    nearest = np.where(kind == CLS, other, np.where(kind == LOC, own, -1))
    return np.where(false, kind, NO_ERROR), np.where(false, nearest, -1)


def lost_precision(m: Matching, kind: np.ndarray, nearest: np.ndarray) -> dict[str, float]:
    """How much AP50 would rise if all errors of one type were corrected, by type.

    Cls and Loc errors become true positives of their object, unless it has another detection with a higher score; other
    false positives disappear; objects that no detection could find do not count.

    Args:
        m: the matched detections.
        kind: type of error of each detection, from :func:`error_types`.
        nearest: the object that it concerns.
    """
    taken = np.zeros(len(m.objects), bool)
    taken[m.match[m.true_positive]] = True
    claims = np.flatnonzero((nearest >= 0) & ~np.append(taken, True)[nearest])
    claims = claims[np.argsort(-m.scores[claims], kind="stable")]
    reachable, first = np.unique(nearest[claims], return_index=True)
    becomes_true = np.zeros(len(m.found), bool)
    becomes_true[claims[first]] = True
    missed = ~taken & ~m.ignore
    missed[reachable] = False

    real = ~m.ignored
    count = np.bincount(m.objects.labels[~m.ignore], minlength=m.num_classes)
    now = _mean_ap(m, real, m.true_positive, m.found.labels, count)
    lost = {}
    for name, number in zip(ERRORS, range(5), strict=False):
        fixed = (kind == number) & becomes_true
        labels = m.found.labels.copy()
        labels[fixed] = m.objects.labels[nearest[fixed]]
        kept = real & ((kind != number) | fixed)
        lost[name] = _mean_ap(m, kept, m.true_positive | fixed, labels, count) - now
    fewer = count - np.bincount(m.objects.labels[missed], minlength=m.num_classes)
    lost["Miss"] = _mean_ap(m, real, m.true_positive, m.found.labels, fewer) - now
    return {name: max(0.0, value) for name, value in lost.items()}


def _nearest(size: int, det: np.ndarray, obj: np.ndarray, iou: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Highest IoU and its object for each of ``size`` detections; 0 and -1 without one. The first of equal ones."""
    order = np.lexsort((-obj, iou))  # the last assignment wins
    best_iou, best = np.zeros(size), np.full(size, -1)
    best_iou[det[order]], best[det[order]] = iou[order], obj[order]
    return best_iou, best


def _mean_ap(m: Matching, kept: np.ndarray, true: np.ndarray, labels: np.ndarray, count: np.ndarray) -> float:
    per_class = zip(rows_by_class(labels, kept, m.num_classes), count.tolist(), strict=True)
    values = [ap50(m.scores[rows], true[rows], objects) for rows, objects in per_class if objects]
    return float(np.mean(values)) if values else 0.0
