"""Faults of boxes that the labels alone show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from .finding import EXAMPLES, Example, Finding, Split
from .image_faults import counted

SAME = 0.95
"""IoU above which two boxes are nearly identical."""

WHOLE = 0.95
"""Share of the image that a box covers almost entirely."""

LONG = 15.0
"""Aspect ratio of an extremely long box."""


def find_box_faults(splits: Sequence[Split]) -> Iterator[Finding]:
    """Repeated, very large and very long boxes; images without boxes."""
    pairs = [overlapping_pairs(split, SAME) for split in splits]
    same = [
        np.unique(i[split.labels[i] == split.labels[j]])
        for split, (i, j, _) in zip(splits, pairs, strict=True)
    ]  # all but one of each group
    if any(map(len, same)):
        yield _of_boxes(
            splits,
            same,
            ("repeated_boxes", "warning"),
            f"labeled twice: another box of the class has an IoU above {SAME:g} with it",
            "The detector merges the two, so one always counts as missed. Remove one of each.",
        )
    mixed = [
        (split.labels[i] != split.labels[j]).nonzero()[0]
        for split, (i, j, _) in zip(splits, pairs, strict=True)
    ]
    if any(map(len, mixed)):
        examples = [
            split.example(int(split.owner[i[r]]), (i[r], j[r]))
            for split, (i, j, _), rows in zip(splits, pairs, mixed, strict=True)
            for r in rows[:EXAMPLES].tolist()
        ]
        count = sum(map(len, mixed))
        yield Finding(
            "two_classes",
            "warning",
            count,
            _num_boxes(splits),
            f"{counted(count, 'object')} labeled with two classes (IoU above {SAME:g})",
            "Training pulls towards both classes. Keep one, unless an object may have two classes.",
            examples=tuple(examples[:EXAMPLES]),
        )
    sides = [split.boxes[:, 2:] - split.boxes[:, :2] for split in splits]
    shares = [
        s.prod(axis=1) / split.sizes[split.owner].prod(axis=1) for split, s in zip(splits, sides, strict=True)
    ]
    whole = [
        np.flatnonzero((share >= WHOLE) & ~split.ignore) for split, share in zip(splits, shares, strict=True)
    ]
    if any(map(len, whole)):
        yield _of_boxes(
            splits,
            whole,
            ("whole_image_boxes", "warning" if sum(map(len, whole)) < 0.1 * _num_boxes(splits) else "note"),
            f"covering {WHOLE:.0%} of the image or more",
            "Often a label of the whole image, not of an object. Check them; tighten or remove the wrong ones.",
        )
    ratios = [s.max(axis=1) / s.min(axis=1) for s in sides]
    long = [
        np.flatnonzero((ratio >= LONG) & ~split.ignore) for split, ratio in zip(splits, ratios, strict=True)
    ]
    if any(map(len, long)):
        yield _of_boxes(
            splits,
            long,
            ("long_boxes", "warning" if sum(map(len, long)) < 0.01 * _num_boxes(splits) else "note"),
            f"at least {LONG:g} times as long as wide",
            "Often a slip of the mouse. Real objects of this shape are hard for a detector with horizontal boxes.",
            lambda split, box: "{:.0f}x{:.0f} pixels".format(*split.boxes[box, 2:] - split.boxes[box, :2]),
        )
    yield from _empty(splits)


def _empty(splits: Sequence[Split]) -> Iterator[Finding]:
    empty = [(split, i) for split in splits for i in np.flatnonzero(split.counts == 0).tolist()]
    if not empty:
        return
    total = sum(map(len, splits))
    most = len(empty) > total / 2
    yield Finding(
        "images_without_boxes",
        "warning" if most else "note",
        len(empty),
        total,
        f"{counted(len(empty), 'image')} without boxes",
        "They are valid and teach what is background. "
        + (
            "But they are most of the images; check that no label files are missing."
            if most
            else "Check that nothing on them was forgotten."
        ),
        examples=tuple(split.example(i) for split, i in empty[:EXAMPLES]),
    )


def overlapping_pairs(split: Split, above: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs of boxes of one image whose IoU exceeds ``above``, without ignored boxes.

    Returns:
        (P,) int64 indices of the first and the second boxes, (P,) float32 IoUs.
    """
    first, second, overlaps = [], [], []
    i = np.flatnonzero(~split.ignore)
    rows, step = np.arange(len(i)), 1
    while len(rows := rows[rows + step < len(i)]):  # the partners one place further on, two, ...
        a, b = i[rows], i[rows + step]
        in_image = split.owner[a] == split.owner[b]
        rows, a, b = rows[in_image], a[in_image], b[in_image]
        found = iou_of_pairs(split.boxes[a], split.boxes[b])
        keep = found > above
        first.append(a[keep])
        second.append(b[keep])
        overlaps.append(found[keep])
        step += 1
    none = np.zeros(0, np.int64)
    return (
        np.concatenate([none, *first]),
        np.concatenate([none, *second]),
        np.concatenate([np.zeros(0, np.float32), *overlaps]),
    )


def iou_of_pairs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(..., ) IoU of the boxes (..., 4) of two arrays, which are broadcast."""
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    inside = sides.clip(0).prod(axis=-1)
    areas = [(x[..., 2:] - x[..., :2]).prod(axis=-1) for x in (a, b)]
    return inside / np.maximum(areas[0] + areas[1] - inside, 1e-9)


def _of_boxes(
    splits: Sequence[Split],
    rows: Sequence[np.ndarray],
    kind: tuple[str, str],
    what: str,
    advice: str,
    detail: Callable[[Split, int], str] = lambda split, box: "",
) -> Finding:
    """A finding about some boxes of each split."""
    examples: list[Example] = []
    for split, found in zip(splits, rows, strict=True):
        examples += split.examples(found, partial(detail, split))
    count = sum(map(len, rows))
    name, severity = kind
    return Finding(
        name,
        severity,  # type: ignore[arg-type]
        count,
        _num_boxes(splits),
        f"{counted(count, 'box')} {what}",
        advice,
        examples=tuple(examples[:EXAMPLES]),
    )


def _num_boxes(splits: Sequence[Split]) -> int:
    return sum(len(split.boxes) for split in splits)
