"""How the boxes suit the configured detector: its input size, pyramid levels and limits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

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
from .finding import EXAMPLES, Finding, Split
from .image_faults import counted

SAMPLE = 2000
"""Images of the training split for which the levels are computed."""

MIN_SIZE, MIN_SHARE = 1, 0.01
"""A box is tiny if its shorter side is below so many strides of the finest level; fewer tiny boxes are a note."""


def find_misfits(splits: Sequence[Split], config: Config) -> Iterator[Finding]:
    """All findings that depend on the configuration of the training. The first split is that of the training."""
    model, train = config.model, splits[0]
    if not len(train.boxes):
        return
    advised = _sizes_for(train, model) if isinstance(model, FCOSConfig) else ()
    yield from _tiny(splits, model, advised)
    if isinstance(model, FCOSConfig):
        yield from _unassigned(train, model, advised)
    yield from _crowded(splits, model)
    yield from _suppressed(splits, model)
    if len(train) < config.train.batch_size:
        yield Finding(
            "few_images",
            "error",
            len(train),
            len(train),
            f"{counted(len(train), 'image')} in {train.name}, fewer than one batch",
            "Training needs at least one full batch. Add images, or train with smaller batches.",
            ("--train.batch_size", str(max(1, len(train) // 2))),
        )


def _sizes_for(train: Split, model: FCOSConfig) -> tuple[str, ...]:
    """Options for the input size and level ranges that suit the boxes; empty if the current ones do."""
    records = sample(train.dataset, SAMPLE)
    if not any(len(record.boxes) for record in records):
        return ()
    best = best_size(size_statistics(records, suggest_ranges(records, model)))
    return tuple(options_for(model, suggest_ranges(records, best.config)))


def _tiny(splits: Sequence[Split], model: DetectorConfig, advised: tuple[str, ...]) -> Iterator[Finding]:
    stride = 2**model.min_level
    sides = [shorter_sides(split, model) for split in splits]
    tiny = [
        np.flatnonzero((s < MIN_SIZE * stride) & ~split.ignore)
        for split, s in zip(splits, sides, strict=True)
    ]
    count, total = sum(map(len, tiny)), sum(len(split.boxes) for split in splits)
    if not count:
        return
    examples = []
    for split, rows, side in zip(splits, tiny, sides, strict=True):
        for box in rows[np.argsort(side[rows])][:EXAMPLES].tolist():
            width, height = split.boxes[box, 2:] - split.boxes[box, :2]
            detail = f"{width:.0f}x{height:.0f} pixels, shorter side {side[box]:.1f} in the input"
            examples.append(split.example(int(split.owner[box]), [box], detail))
    enough = "The rest suits this input size; check that these are no slips. "
    yield Finding(
        "tiny_boxes",
        "warning" if count > MIN_SHARE * total else "note",
        count,
        total,
        f"{counted(count, 'box')} narrower than one stride of the finest level ({stride} pixels) at the input size",
        "The detector has no two locations on such an object and rarely finds it. "
        + ("Enlarge the images, or use tiles when detecting (detect --tile)." if advised else enough),
        advised,
        tuple(examples[:EXAMPLES]),
    )


def shorter_sides(split: Split, model: DetectorConfig) -> np.ndarray:
    """(N,) the shorter side of each box in pixels of the network's input."""
    scale = np.ones(len(split))
    for size in np.unique(split.sizes, axis=0):
        height, _ = detection_size((int(size[1]), int(size[0])), model)
        scale[(split.sizes == size).all(axis=1)] = height / size[1]
    return (split.boxes[:, 2:] - split.boxes[:, :2]).min(axis=1) * scale[split.owner]


def _unassigned(train: Split, model: FCOSConfig, advised: tuple[str, ...]) -> Iterator[Finding]:
    levels = level_statistics(sample(train.dataset, SAMPLE), model)
    if levels.share_unassigned <= ACCEPTED_LOSS:
        return
    yield Finding(
        "boxes_on_no_level",
        "warning",
        levels.unassigned,
        levels.num_boxes,
        f"{counted(levels.unassigned, 'box')} of {train.name} without a location on any level "
        f"(of {levels.num_boxes:,} checked; median longer side {levels.lost_side:.0f} pixels in the input)",
        "Nothing is learned from them: they are too small, or hidden by smaller boxes. fcos-fast data stats shows the "
        "levels" + ("; these options assign more of them." if advised else "."),
        advised,
    )


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
        ("--model.max_detections", str(-(-most * 3 // 2 // 100) * 100)),
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
    if len(found) <= 0.005 * total:
        return
    found.sort(key=lambda pair: -pair[3])
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
        tuple(s.example(int(s.owner[a]), [a, b], f"IoU {v:.2f}") for s, a, b, v in found[:EXAMPLES]),
    )
