"""How the boxes suit the configured detector: its input size, pyramid levels and limits."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from fcos_fast.data import Record
from fcos_fast.engine.box_statistics import (
    ACCEPTED_LOSS,
    best_size,
    level_statistics,
    options_for,
    sample,
    size_statistics,
    suggest_ranges,
)
from fcos_fast.engine.config import Config
from fcos_fast.models import DetectorConfig, FCOSConfig
from fcos_fast.models.sizes import detection_size

from .box_faults import overlapping_pairs
from .finding import EXAMPLES, Example, Finding, Split
from .image_faults import counted

SAMPLE = 2000
"""Images of the training split for which the levels are computed."""

MIN_SHARE = 0.01
"""A smaller share of tiny boxes is only a note."""

LARGEST_FACTOR = 3.0
"""The input is enlarged at most so many times for tiny boxes."""


def find_misfits(splits: Sequence[Split], config: Config) -> Iterator[Finding]:
    """All findings that depend on the configuration of the training. The first split is that of the training."""
    model, train = config.model, splits[0]
    if not len(train.boxes):
        return
    sides = [shorter_sides(split, model) for split in splits]
    factor = float(2**model.min_level / np.percentile(np.concatenate(sides), 100 * MIN_SHARE))
    larger = _enlarged(train, model, factor) if 1 < factor <= LARGEST_FACTOR else None
    yield from _tiny(splits, sides, model, larger, factor)
    if isinstance(model, FCOSConfig):
        yield from _unassigned(train, model, larger)
    yield from _crowded(splits, model)
    yield from _suppressed(splits, model)
    batch = config.train.batch_size
    if batch != "auto" and len(train) < batch:
        yield Finding(
            "few_images",
            "error",
            len(train),
            len(train),
            f"{counted(len(train), 'image')} in {train.name}, fewer than one batch",
            "Training needs at least one full batch. Add images, or train with smaller batches.",
            ("--train.batch_size", str(max(1, len(train) // 2))),
        )


def _tiny(
    splits: Sequence[Split],
    sides: Sequence[np.ndarray],
    model: DetectorConfig,
    larger: DetectorConfig | None,
    factor: float,
) -> Iterator[Finding]:
    """Boxes between the locations of the finest level, which ``larger`` would not have in an input ``factor`` times as
    large."""
    stride = 2**model.min_level
    tiny = [
        np.flatnonzero((side < stride) & ~split.ignore) for split, side in zip(splits, sides, strict=True)
    ]
    count, total = sum(map(len, tiny)), sum(len(split.boxes) for split in splits)
    if not count:
        return
    examples: list[Example] = []
    for split, rows, side in zip(splits, tiny, sides, strict=True):
        examples += split.examples(rows[np.argsort(side[rows])], partial(_describe, split, side))
    few = count <= MIN_SHARE * total
    if few:
        remedy = "They are few; check that they are no slips."
    elif larger:
        remedy = "Larger images make them wider, but training and detection slower."
    else:
        remedy = f"Images would have to be {factor:.0f} times larger: cut them into tiles (detect --tile)."
    yield Finding(
        "tiny_boxes",
        "note" if few else "warning",
        count,
        total,
        f"{counted(count, 'box')} narrower at the input size than the {stride} pixels between two locations",
        f"At most one row of locations is on such an object, so it is rarely found. {remedy}",
        options_for(model, larger) if larger and not few else (),
        tuple(examples[:EXAMPLES]),
    )


def _describe(split: Split, sides: np.ndarray, box: int) -> str:
    width, height = split.boxes[box, 2:] - split.boxes[box, :2]
    return f"{width:.0f}x{height:.0f} pixels, shorter side {sides[box]:.1f} in the input"


def _enlarged(train: Split, model: DetectorConfig, factor: float) -> DetectorConfig:
    """``model`` with an input ``factor`` times as large, and the level ranges that suit it."""
    size = model.min_size[-1] if isinstance(model.min_size, tuple) else model.min_size
    size = size or int(np.median(train.sizes.min(axis=1)))
    larger = replace(
        model,
        min_size=round_up(size * factor, model.size_divisor),
        max_size=None if model.max_size is None else round_up(model.max_size * factor, model.size_divisor),
    )
    if isinstance(larger, FCOSConfig):
        return suggest_ranges(sample(train.dataset, SAMPLE), larger)
    return larger


def round_up(value: float, divisor: int) -> int:
    """``value`` rounded up to a multiple of ``divisor``."""
    return math.ceil(value / divisor) * divisor


def shorter_sides(split: Split, model: DetectorConfig) -> np.ndarray:
    """(N,) the shorter side of each box in pixels of the network's input."""
    sizes, index = np.unique(split.sizes, axis=0, return_inverse=True)
    scales = np.array([detection_size((h, w), model)[0] / h for w, h in sizes.tolist()])
    sides = (split.boxes[:, 2:] - split.boxes[:, :2]).min(axis=1)
    return sides * scales[index.reshape(-1)][split.owner]


def _unassigned(train: Split, model: FCOSConfig, larger: DetectorConfig | None) -> Iterator[Finding]:
    """Boxes without a location; ``larger`` is advised for tiny boxes, and then for these too."""
    records = sample(train.dataset, SAMPLE)
    levels = level_statistics(records, model)
    if levels.share_unassigned <= ACCEPTED_LOSS:
        return
    options = options_for(model, larger or _better_levels(records, model))
    yield Finding(
        "boxes_on_no_level",
        "warning",
        levels.unassigned,
        levels.num_boxes,
        f"{levels.unassigned:,} of {counted(levels.num_boxes, 'box')} of {train.name} without a location on any level",
        f"Nothing is learned from them: they are too small, or hidden by smaller boxes. The median of their longer "
        f"sides is {levels.lost_side:.0f} pixels in the input. fcos-fast data stats shows the levels"
        + ("; these options assign more boxes." if options else "."),
        options,
    )


def _better_levels(records: Sequence[Record], model: FCOSConfig) -> FCOSConfig:
    """``model`` with other level ranges and, if these are not enough, another input size."""
    better = suggest_ranges(records, model)
    if level_statistics(records, better).share_unassigned <= ACCEPTED_LOSS:
        return better
    return suggest_ranges(records, best_size(size_statistics(records, better)).config)


def _crowded(splits: Sequence[Split], model: DetectorConfig) -> Iterator[Finding]:
    full = [
        (split, i) for split in splits for i in np.flatnonzero(split.counts > model.max_detections).tolist()
    ]
    if not full:
        return
    full.sort(key=lambda member: -member[0].counts[member[1]])
    most = int(full[0][0].counts[full[0][1]])
    yield Finding(
        "crowded_images",
        "warning",
        len(full),
        sum(map(len, splits)),
        f"{counted(len(full), 'image')} with more than {model.max_detections} boxes, the most that are detected",
        f"The largest number is {most}. Raise the limits, or the others always count as missed.",
        ("--model.max_detections", str(round_up(1.5 * most, 100))),
        tuple(
            split.example(i, split.rows(i), counted(int(split.counts[i]), "box"))
            for split, i in full[:EXAMPLES]
        ),
    )


def _suppressed(splits: Sequence[Split], model: DetectorConfig) -> Iterator[Finding]:
    """Objects of one class that overlap more than non-maximum suppression allows."""
    found = []
    for split in splits:
        i, j, overlap = overlapping_pairs(split, model.nms_threshold)
        keep = (split.labels[i] == split.labels[j]) & (overlap <= 0.9)
        found += [(split, a, b, v) for a, b, v in zip(i[keep], j[keep], overlap[keep].tolist(), strict=True)]
    total = sum(len(split.boxes) for split in splits)
    if len(found) <= 0.01 * total:
        return
    found.sort(key=lambda pair: -pair[3])
    one_per_image = list(
        {(s.name, int(s.owner[a])): (s, a, b, v) for s, a, b, v in reversed(found)}.values()
    )[::-1]
    suited = min(0.9, float(np.ceil(np.percentile([v for *_, v in found], 90) * 20) / 20))
    yield Finding(
        "overlapping_objects",
        "note",
        len(found),
        total,
        f"{counted(len(found), 'pair')} of objects of one class overlap more than non-maximum suppression allows (IoU "
        f"{model.nms_threshold:g})",
        "Only one object of each pair can be detected. A higher threshold keeps both, at the price of more repeated "
        "detections.",
        ("--model.nms_threshold", f"{suited:g}"),
        tuple(s.example(int(s.owner[a]), [a, b], f"IoU {v:.2f}") for s, a, b, v in one_per_image[:EXAMPLES]),
    )
