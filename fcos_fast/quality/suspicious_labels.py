"""Labels that a trained detector contradicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fcos_fast.inference.detections import Detections
from fcos_fast.text import printable

from .box_faults import iou_of_pairs
from .finding import EXAMPLES, Example, Finding, Split
from .image_faults import counted

FOUND = 0.5
"""IoU from which a detection is of a label's object."""

NEAR = 0.3
"""IoU, or share of the detection inside an ignored box, below which a detection has no label."""

CERTAIN = 0.7
"""IoU from which a detection of another class contradicts a label's class."""

Detect = Callable[[list[Path]], Iterator[Detections]]
"""Yields the detections of each image."""


@dataclass(frozen=True, eq=False)
class _Image:
    """The detections of one image beside its labels.

    ``scores``, ``labels`` (D,) and ``boxes`` (D, 4) of the detections; ``overlaps`` (D, N) with the image's boxes,
    whose indices in the split are ``rows``; ``inside`` (D,) is the largest share of a detection inside an ignored box.
    """

    split: Split
    image: int
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    overlaps: np.ndarray
    inside: np.ndarray
    rows: np.ndarray

    @property
    def same(self) -> np.ndarray:
        """(D, N) bool: whether a detection has the class of a label."""
        return self.labels[:, None] == self.split.labels[self.rows][None]

    def example(self, box: np.ndarray, text: str, detail: str) -> Example:
        """The image with its labels and one box."""
        split = self.split
        labels = split.boxes[split.rows(self.image)]
        return Example(split.file(self.image), detail, split.path(self.image), box[None], (text,), labels)


def find_suspicious_labels(
    splits: Sequence[Split], readable: Callable[[Split, int], bool], detect: Detect, names: Sequence[str]
) -> Iterator[Finding]:
    """Missing labels, labels of the wrong class and labels of nothing.

    A detection is confident if its score is at least the median score of the correct detections of its class: that
    adapts to detectors whose scores are low. Findings are sorted by the score of the detection that contradicts the
    label, labels of nothing by their area; the loss is not computed.

    Args:
        splits: splits to check.
        readable: whether an image of a split can be read.
        detect: the trained detector.
        names: classes of the detector. Boxes of other classes are not judged.
    """
    images = [found for split in splits for found in _compare(split, readable, detect, names)]
    typical = _typical_scores(images, len(splits[0].names))
    total = sum(len(found.rows) for found in images)
    missing = sorted(_missing(images, typical), key=lambda pair: -pair[0])
    if missing:
        yield Finding(
            "missing_labels",
            "warning",
            len(missing),
            total,
            f"{counted(len(missing), 'confident detection')} without a label",
            "Probably forgotten labels: training punishes the model for finding these objects. Add the labels that are "
            "missing, highest scores first. White boxes are the labels that exist.",
            examples=tuple(example for _, example in missing[:EXAMPLES]),
        )
    swapped = sorted(_swapped(images, typical), key=lambda pair: -pair[0])
    if swapped:
        yield Finding(
            "class_disagreements",
            "warning",
            len(swapped),
            total,
            f"{counted(len(swapped), 'label')} of another class than the confident detection of the object",
            "Probably wrong classes, or classes that are hard to tell apart. Correct them, highest scores first.",
            examples=tuple(example for _, example in swapped[:EXAMPLES]),
        )
    lost = sorted(_never_found(images), key=lambda pair: -pair[0])
    if lost:
        yield Finding(
            "labels_never_detected",
            "warning" if len(lost) < 0.2 * total else "note",
            len(lost),
            total,
            f"{counted(len(lost), 'label')} without a detection of any class",
            f"No detection has an IoU of {NEAR:g} with them, not even of a low score: boxes of nothing, badly placed "
            "boxes, or objects that cannot be seen. Largest boxes first: small ones are often just too hard."
            + ("" if len(lost) < 0.2 * total else " The detector misses many; train it longer."),
            examples=tuple(example for _, example in lost[:EXAMPLES]),
        )


def _compare(
    split: Split, readable: Callable[[Split, int], bool], detect: Detect, names: Sequence[str]
) -> Iterator[_Image]:
    label_of = np.array([split.names.index(name) if name in split.names else -1 for name in names])
    known = np.isin(np.arange(len(split.names)), label_of)
    images = [i for i in range(len(split)) if readable(split, i)]
    paths = [path for i in images if (path := split.path(i)) is not None]
    for i, found in zip(images, detect(paths), strict=True):
        all_rows = np.array(split.rows(i), dtype=np.int64)
        ignored = split.ignore[all_rows] | ~known[split.labels[all_rows]]
        rows, crowds = all_rows[~ignored], split.boxes[all_rows[ignored]]
        kept = label_of[found.labels] >= 0
        boxes = found.boxes[kept]
        overlaps = iou_of_pairs(boxes[:, None], split.boxes[rows][None])
        inside = _share_inside(boxes[:, None], crowds[None]).max(axis=1, initial=0)
        labels = label_of[found.labels[kept]]
        yield _Image(split, i, boxes, found.scores[kept], labels, overlaps, inside, rows)


def _share_inside(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The share of each box ``a`` that is inside ``b``; both (..., 4) and broadcast."""
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    return sides.clip(0).prod(axis=-1) / np.maximum((a[..., 2:] - a[..., :2]).prod(axis=-1), 1e-9)


def _typical_scores(images: Sequence[_Image], num_classes: int) -> np.ndarray:
    """(C,) the median score of the correct detections of each class; 1 without any, so that none is confident."""
    scores, labels = [np.zeros(0)], [np.zeros(0, np.int64)]
    for found in images:
        correct = np.where(found.same, found.overlaps, 0) >= FOUND  # (D, N)
        best = np.where(correct, found.scores[:, None], 0).max(axis=0, initial=0)  # of each label
        scores.append(best[best > 0])
        labels.append(found.split.labels[found.rows][best > 0])
    score, label = np.concatenate(scores), np.concatenate(labels)
    return np.array([np.median(score[label == c]) if (label == c).any() else 1.0 for c in range(num_classes)])


def _missing(images: Sequence[_Image], typical: np.ndarray) -> Iterator[tuple[float, Example]]:
    for found in images:
        alone = (found.overlaps.max(axis=1, initial=0) < NEAR) & (found.inside < NEAR)
        kept: list[np.ndarray] = []
        for d in np.flatnonzero(alone & (found.scores >= typical[found.labels])).tolist():  # best score first
            if all(iou_of_pairs(found.boxes[d], box) < FOUND for box in kept):  # one object, one finding
                kept.append(found.boxes[d])
                name, score = printable(found.split.names[found.labels[d]]), float(found.scores[d])
                yield score, found.example(found.boxes[d], name, f"{name} with score {score:.2f}, no label")


def _swapped(images: Sequence[_Image], typical: np.ndarray) -> Iterator[tuple[float, Example]]:
    for found in images:
        own = np.where(found.same & (found.overlaps >= FOUND), found.scores[:, None], 0).max(
            axis=0, initial=0
        )
        confident = found.scores >= typical[found.labels]
        other = ~found.same & (found.overlaps >= CERTAIN) & confident[:, None]
        scores = np.where(other, found.scores[:, None], 0)  # (D, N)
        for n in np.flatnonzero(scores.max(axis=0, initial=0) > own).tolist():
            d = int(scores[:, n].argmax())
            label = printable(found.split.names[found.split.labels[found.rows[n]]])
            name, score = printable(found.split.names[found.labels[d]]), float(found.scores[d])
            yield (
                score,
                found.example(
                    found.split.boxes[found.rows[n]],
                    f"{label}?",
                    f"labeled {label}, detected {name} with score {score:.2f}",
                ),
            )


def _never_found(images: Sequence[_Image]) -> Iterator[tuple[float, Example]]:
    for found in images:
        best = found.overlaps.max(axis=0, initial=0)  # of any class: wrong classes are another finding
        for n in np.flatnonzero(best < NEAR).tolist():
            box = found.split.boxes[found.rows[n]]
            width, height = (box[2:] - box[:2]).tolist()
            label = printable(found.split.names[found.split.labels[found.rows[n]]])
            yield width * height, found.example(box, label, f"{label}, {width:.0f}x{height:.0f} pixels")
