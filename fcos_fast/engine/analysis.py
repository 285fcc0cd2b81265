"""What the detections of a dataset get right and wrong: the numbers of a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from fcos_fast.data import DetectionDataset
from fcos_fast.engine.average_precision import AveragePrecision
from fcos_fast.engine.matching import IOU, Matching, match_detections, rows_by_class
from fcos_fast.engine.precision_recall import Curves, count, curves
from fcos_fast.engine.tide import CLS, ERRORS, LOC, NO_ERROR, error_types, lost_precision

SIZES = (0, 16, 32, 64, 96, 128, 256, 512, math.inf)
"""Bounds of the groups of objects by the square root of their area in pixels."""

ASPECTS = (0, 1 / 3, 1 / 2, 0.8, 1.25, 2, 3, math.inf)
"""Bounds of the groups of objects by width over height."""

BADLY_PLACED = (0.3, 0.75)
"""Range of IoU of the examples of badly placed boxes. Below it, the box is rather that of a neighbor."""

EXAMPLES = 6
"""Number of images that each list of examples has at most."""


@dataclass(frozen=True)
class Group:
    """The objects of a range of sizes or aspect ratios.

    Attributes:
        low, high: the range, without ``high``.
        objects: number of objects that are not ignored.
        found: number of them that are found at the best thresholds.
    """

    low: float
    high: float
    objects: int
    found: int


@dataclass(frozen=True)
class Example:
    """An image with a mistake.

    Attributes:
        image: index of the image in the dataset.
        name: its file name.
        text: what is wrong.
        box: xyxy in pixels, where to look.
        shows_object: the box surrounds a detection and the object that it should surround.
    """

    image: int
    name: str
    text: str
    box: tuple[float, float, float, float]
    shows_object: bool = False


@dataclass(frozen=True)
class Analysis:
    """What the detections of a dataset get right and wrong at IoU 0.5.

    Everything that depends on a score threshold uses the best one of each class. Objects that are ignored count neither
    as found nor as missed.

    Attributes:
        classes: the C class names.
        images: number of images.
        average_precision: COCO's metrics.
        thresholds: class name to its best score threshold: the one with the highest F1. A class of which nothing is
            found has that of all classes.
        overall: precision, recall and F1: mean over the classes that have objects.
        per_class: class name to its precision, recall and F1.
        confusion: C+1 rows by class of the object, C+1 columns by class of the detection; the last is background: a
            false positive has no object, a missed object no detection.
        lost_precision: type of error (:data:`~fcos_fast.engine.tide.ERRORS`) to what AP50 would gain without it.
        errors: type of error to its number.
        sizes, aspects: objects by square root of the area in pixels, and by width over height.
        missed, false_positives, badly_placed: the worst images, with an example each.
    """

    classes: tuple[str, ...]
    images: int
    average_precision: AveragePrecision
    thresholds: dict[str, float]
    overall: Curves
    per_class: dict[str, Curves]
    confusion: tuple[tuple[int, ...], ...]
    lost_precision: dict[str, float]
    errors: dict[str, int]
    sizes: tuple[Group, ...]
    aspects: tuple[Group, ...]
    missed: tuple[Example, ...] = field(default=())
    false_positives: tuple[Example, ...] = field(default=())
    badly_placed: tuple[Example, ...] = field(default=())

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, rounded to 5 digits; infinite bounds and NaN are None."""
        return _rounded(asdict(self))


@dataclass(frozen=True, eq=False)
class Outcome:
    """The detections at the best thresholds, and what becomes of the objects.

    Attributes:
        matching: all detections.
        shown: (D,) bool, score at or above the threshold of the class, and not matched with an ignored object.
        correct: (D,) bool, true positive.
        found: (G,) bool, object of a shown true positive.
        kind: (D,) index into :data:`~fcos_fast.engine.tide.ERRORS` of a false positive, otherwise -1.
        nearest: (D,) index of the object that an error of type Cls or Loc concerns, otherwise -1.
    """

    matching: Matching
    shown: np.ndarray
    correct: np.ndarray
    found: np.ndarray
    kind: np.ndarray
    nearest: np.ndarray

    @property
    def missed(self) -> np.ndarray:
        """(G,) bool: neither found nor ignored."""
        return ~self.found & ~self.matching.ignore


def analyze(
    dataset: DetectionDataset, detections: Sequence[dict[str, Tensor]], result: AveragePrecision
) -> tuple[Analysis, Outcome]:
    """Analyze the detections of a dataset. No image is read.

    Args:
        dataset: the evaluated dataset.
        detections: ``boxes``, ``scores`` and ``labels`` of each of its images, on the CPU.
        result: their average precision.

    Returns:
        The numbers, and the outcome of each detection and object, for drawing.
    """
    classes = dataset.categories.names
    m = match_detections(dataset.records, detections, len(classes))
    objects = np.bincount(m.objects.labels[~m.ignore], minlength=len(classes)).tolist()
    rows = rows_by_class(m.found.labels, ~m.ignored, len(classes))
    counts = {
        name: count(m.scores[of_class], m.true_positive[of_class], number)
        for name, of_class, number in zip(classes, rows, objects, strict=True)
        if number
    }
    per_class = {name: curves([counts[name]] if name in counts else []) for name in classes}
    overall = curves(list(counts.values()))
    thresholds = _thresholds(per_class, overall)
    outcome = _outcome(m, np.array([thresholds[name] for name in classes]))
    wrong = outcome.kind[outcome.shown]
    errors = dict(zip(ERRORS, np.bincount(wrong[wrong >= 0], minlength=5).tolist(), strict=False))
    sides = m.objects.boxes[:, 2:] - m.objects.boxes[:, :2]
    names = [record.name for record in dataset.records]
    return Analysis(
        classes=classes,
        images=len(dataset),
        average_precision=result,
        thresholds=thresholds,
        overall=overall,
        per_class=per_class,
        confusion=tuple(map(tuple, confusion_matrix(outcome).tolist())),
        lost_precision=lost_precision(m, outcome.kind, outcome.nearest),
        errors={**errors, "Miss": int(outcome.missed.sum())},
        sizes=_groups(outcome, np.sqrt(m.areas), SIZES),
        aspects=_groups(outcome, sides[:, 0] / sides[:, 1], ASPECTS),
        missed=_most_missed(outcome, names, classes),
        false_positives=_worst_false_positives(outcome, names, classes),
        badly_placed=_badly_placed(outcome, names, classes),
    ), outcome


def confusion_matrix(outcome: Outcome) -> np.ndarray:
    """(C+1, C+1) counts by class of the object and class of the detection; the last row and column are background.

    Correct detections are counted as such. Of the others, each is counted for the remaining object of another class
    with the highest IoU, from 0.5 on, one detection per object.
    """
    m, size = outcome.matching, outcome.matching.num_classes
    matrix = np.zeros((size + 1, size + 1), np.int64)
    np.add.at(matrix.reshape(-1), m.objects.labels[outcome.found] * (size + 2), 1)  # the diagonal
    det, obj, iou = m.near
    open_det, open_obj = outcome.shown & ~outcome.correct, outcome.missed.copy()
    pairs = np.flatnonzero(open_det[det] & open_obj[obj] & (iou >= IOU))
    for pair in pairs[np.argsort(-iou[pairs], kind="stable")].tolist():
        d, g = det[pair], obj[pair]
        if open_det[d] and open_obj[g]:
            open_det[d] = open_obj[g] = False
            matrix[m.objects.labels[g], m.found.labels[d]] += 1
    matrix[-1, :-1] = np.bincount(m.found.labels[open_det], minlength=size)
    matrix[:-1, -1] = np.bincount(m.objects.labels[open_obj], minlength=size)
    return matrix


def _thresholds(per_class: dict[str, Curves], overall: Curves) -> dict[str, float]:
    default = 0.5 if math.isnan(overall.threshold) else overall.threshold
    return {
        name: default if math.isnan(curve.threshold) else curve.threshold for name, curve in per_class.items()
    }


def _outcome(m: Matching, thresholds: np.ndarray) -> Outcome:
    shown = (m.scores >= thresholds[m.found.labels]) & ~m.ignored
    correct = shown & m.true_positive
    found = np.zeros(len(m.objects), bool)
    found[m.match[correct]] = True
    kind, nearest = error_types(m)
    return Outcome(m, shown, correct, found, kind, nearest)


def _groups(outcome: Outcome, values: np.ndarray, bounds: Sequence[float]) -> tuple[Group, ...]:
    """The objects by range of a value, without the empty ranges at both ends."""
    real = ~outcome.matching.ignore
    which = np.searchsorted(bounds, values, side="right") - 1
    objects, found = (
        np.bincount(which[rows], minlength=len(bounds) - 1) for rows in (real, outcome.found & real)
    )
    used = np.flatnonzero(objects)
    return tuple(
        Group(bounds[i], bounds[i + 1], int(objects[i]), int(found[i]))
        for i in (range(used[0], used[-1] + 1) if len(used) else ())
    )


def _most_missed(outcome: Outcome, names: Sequence[str], classes: Sequence[str]) -> tuple[Example, ...]:
    """The images with the most missed objects, and the largest of these."""
    m = outcome.matching
    per_image = np.bincount(m.objects.images[outcome.missed], minlength=m.num_images)
    objects = np.bincount(m.objects.images[~m.ignore], minlength=m.num_images)
    rows = np.flatnonzero(outcome.missed)
    rows = rows[np.lexsort((-m.areas[rows], -per_image[m.objects.images[rows]]))]
    examples = []
    for row in _one_per_image(rows, m.objects.images):
        image = int(m.objects.images[row])
        text = f"{per_image[image]} of {objects[image]} missed; here {classes[m.objects.labels[row]]}"
        examples.append(Example(image, names[image], text, _box(m.objects.boxes[row])))
    return tuple(examples)


def _worst_false_positives(
    outcome: Outcome, names: Sequence[str], classes: Sequence[str]
) -> tuple[Example, ...]:
    """The images with the false positives of the highest scores, without those that are badly placed only."""
    m = outcome.matching
    rows = np.flatnonzero(outcome.shown & (outcome.kind != NO_ERROR) & (outcome.kind != LOC))
    rows = rows[np.argsort(-m.scores[rows], kind="stable")]
    meaning = list(ERRORS.values())
    examples = []
    for row in _one_per_image(rows, m.found.images):
        image, kind = int(m.found.images[row]), int(outcome.kind[row])
        what = meaning[kind]
        if kind == CLS:
            what = f"it is {classes[m.objects.labels[outcome.nearest[row]]]}"
        text = f"{classes[m.found.labels[row]]} {m.scores[row]:.2f}: {what}"
        examples.append(Example(image, names[image], text, _box(m.found.boxes[row])))
    return tuple(examples)


def _badly_placed(outcome: Outcome, names: Sequence[str], classes: Sequence[str]) -> tuple[Example, ...]:
    """The images with detections of the right class that score high and have a low IoU with their object."""
    m = outcome.matching
    det, obj, iou = m.near
    target = np.where(outcome.correct, m.match, outcome.nearest)
    rows = outcome.shown[det] & (outcome.correct | (outcome.kind == LOC))[det] & (obj == target[det])
    rows &= (iou >= BADLY_PLACED[0]) & (iou < BADLY_PLACED[1])
    pairs = np.flatnonzero(rows)
    pairs = pairs[np.argsort(-m.scores[det[pairs]] * (1 - iou[pairs]), kind="stable")]
    examples = []
    for pair in _one_per_image(pairs, m.found.images[det]):
        d, g = int(det[pair]), int(obj[pair])
        image = int(m.found.images[d])
        low, high = m.found.boxes[d], m.objects.boxes[g]
        both = np.concatenate([np.minimum(low, high)[:2], np.maximum(low, high)[2:]])
        text = f"{classes[m.found.labels[d]]} {m.scores[d]:.2f}: IoU {iou[pair]:.2f} with its object"
        examples.append(Example(image, names[image], text, _box(both), shows_object=True))
    return tuple(examples)


def _one_per_image(rows: np.ndarray, images: np.ndarray) -> list[int]:
    """The first row of each image, at most :data:`EXAMPLES`, in order."""
    _, first = np.unique(images[rows], return_index=True)
    return rows[np.sort(first)][:EXAMPLES].tolist()


def _box(box: np.ndarray) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box.tolist()
    return x1, y1, x2, y2


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    if isinstance(value, float):
        return round(value, 5) if math.isfinite(value) else None
    return value
