"""How the boxes of a dataset are assigned to the levels of an FCOS, and which level ranges and input size suit them.

The counts are exact: boxes are scaled as the model scales its images, and assigned by the model's own rule.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from fcos_fast import ops
from fcos_fast.assignment import GroundTruth
from fcos_fast.data import DetectionDataset, Record
from fcos_fast.models import DetectorConfig, FCOSConfig
from fcos_fast.models.sizes import Size, padded, resized
from fcos_fast.models.transform import scale_boxes

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
BASES = (12, 16, 24, 32, 48, 64, 96, 128)
"""Candidates for the first bound between levels, in pixels; each next bound is twice the previous one, as published."""

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0)
"""Candidates for the input size, relative to the current one."""

ACCEPTED_LOSS = 0.01
"""Accepted share of boxes without a location."""

MIN_SIDE = 2
"""Required 5th percentile of the boxes' shorter sides, in strides of the finest level."""

_BATCH = 16  # images per assignment


@dataclass(frozen=True)
class LevelStatistics:
    """The levels of the boxes of a dataset, for one input size and one rule.

    Attributes:
        num_boxes: number of boxes in all images.
        on_level: number of boxes with a location on each level; a box can be on several.
        unassigned: number of boxes without a location.
        lost_side: median of the longer sides of the unassigned boxes, in input pixels; 0 if there are none.
    """

    num_boxes: int
    on_level: tuple[int, ...]
    unassigned: int
    lost_side: float

    @property
    def share_unassigned(self) -> float:
        """Unassigned boxes as a share of all boxes."""
        return self.unassigned / max(1, self.num_boxes)

    @property
    def evenness(self) -> float:
        """Normalized entropy of the boxes over the levels: 1 if all levels have the same number."""
        share = np.array(self.on_level) / max(1, sum(self.on_level))
        share = share[share > 0]
        return float(-(share * np.log(share)).sum() / np.log(len(self.on_level)))


@dataclass(frozen=True)
class SizeStatistics:
    """The statistics of one input size.

    Attributes:
        config: configuration with that size.
        short_side: 5th percentile of the boxes' shorter sides, in input pixels.
        levels: levels of the boxes.
    """

    config: FCOSConfig
    short_side: float
    levels: LevelStatistics


def sample(dataset: DetectionDataset, count: int) -> list[Record]:
    """At most ``count`` records, evenly spaced."""
    positions = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)
    return [dataset.records[i] for i in positions]


def input_size(size: Size, config: FCOSConfig) -> Size:
    """(height, width) after the resizing of evaluation, without padding."""
    min_size = config.min_size[-1] if isinstance(config.min_size, tuple) else config.min_size
    return size if min_size is None else resized(size, min_size, config.max_size)


def box_sizes(records: Iterable[Record], config: FCOSConfig) -> dict[str, list[float]]:
    """Percentiles (:data:`PERCENTILES`) of ``sqrt(area)`` and of the sides of the boxes, in input pixels."""
    scaled = np.concatenate([np.zeros((0, 4), np.float32), *(_scaled(record, config) for record in records)])
    width, height = scaled[:, 2] - scaled[:, 0], scaled[:, 3] - scaled[:, 1]
    sizes = {
        "sqrt(area)": np.sqrt(width * height),
        "longer side": np.maximum(width, height),
        "shorter side": np.minimum(width, height),
    }
    return {
        name: np.percentile(size, PERCENTILES).tolist() if len(size) else [] for name, size in sizes.items()
    }


def level_statistics(records: Sequence[Record], config: FCOSConfig) -> LevelStatistics:
    """Assign the boxes of ``records`` to the locations of all levels, and count them."""
    groups: dict[Size, list[Record]] = defaultdict(list)
    for record in records:
        if len(_kept(record)):
            size = input_size((record.size[1], record.size[0]), config)
            groups[padded(size, config.size_divisor)].append(record)
    on_level = np.zeros(len(config.strides), dtype=np.int64)
    num_boxes, lost = 0, [np.zeros((0, 4), np.float32)]
    for size, members in groups.items():
        feature_sizes = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in config.strides]
        levels = config.rule.levels(feature_sizes, size, config.strides)
        for start in range(0, len(members), _BATCH):
            boxes = [torch.from_numpy(_scaled(record, config)) for record in members[start : start + _BATCH]]
            gt = GroundTruth.pack(boxes, [torch.zeros(len(b), dtype=torch.int64) for b in boxes])
            matched = ops.assign_targets(gt, levels, config.rule).matched  # (B, P)
            found = torch.zeros(len(gt.boxes), dtype=torch.bool)
            for i, part in enumerate(matched.split([level.height * level.width for level in levels], dim=1)):
                rows = part[part >= 0].unique().long()
                on_level[i] += len(rows)
                found[rows] = True
            num_boxes += len(found)
            lost.append(gt.boxes[~found].numpy())
    without = np.concatenate(lost)
    longer = (without[:, 2:] - without[:, :2]).max(axis=1) if len(without) else np.zeros(1)
    return LevelStatistics(num_boxes, tuple(on_level.tolist()), len(without), float(np.median(longer)))


def suggest_ranges(records: Sequence[Record], config: FCOSConfig) -> FCOSConfig:
    """``config`` with the level ranges that leave the fewest boxes unassigned; among equals, the most even ones.

    Shares of unassigned boxes within 0.001 of the smallest count as equal.
    """
    inner = len(config.strides) - 1
    candidates = [config]
    for base in BASES:
        sizes = tuple(float(base * 2**i) for i in range(inner))
        candidates.append(replace(config, rule=replace(config.rule, sizes_of_interest=sizes)))
    found = [level_statistics(records, candidate) for candidate in candidates]
    fewest = min(statistics.share_unassigned for statistics in found)
    good = [i for i, statistics in enumerate(found) if statistics.share_unassigned <= fewest + 0.001]
    return candidates[max(good, key=lambda i: found[i].evenness)]


def size_statistics(records: Sequence[Record], config: FCOSConfig) -> list[SizeStatistics]:
    """Statistics of ``config`` at every input size of :data:`SCALES`, smallest first."""
    min_size = config.min_size[-1] if isinstance(config.min_size, tuple) else config.min_size
    if min_size is None:
        min_size = int(np.median([min(record.size) for record in records]))
    candidates = []
    for scale in SCALES:
        longest = None if config.max_size is None else round(config.max_size * scale)
        sized = replace(config, min_size=round(min_size * scale), max_size=longest)
        short_side = box_sizes(records, sized)["shorter side"][PERCENTILES.index(5)]
        candidates.append(SizeStatistics(sized, short_side, level_statistics(records, sized)))
    return candidates


def best_size(candidates: Sequence[SizeStatistics]) -> SizeStatistics:
    """The smallest size with few unassigned boxes (:data:`ACCEPTED_LOSS`) and large enough boxes (:data:`MIN_SIDE`).

    If there is none, the size with the fewest unassigned boxes.
    """
    for candidate in candidates:
        large = candidate.short_side >= MIN_SIDE * candidate.config.strides[0]
        if large and candidate.levels.share_unassigned <= ACCEPTED_LOSS:
            return candidate
    return min(candidates, key=lambda candidate: candidate.levels.share_unassigned)


def _kept(record: Record) -> np.ndarray:
    """The boxes that are not ignored in training."""
    return record.boxes[~record.ignore]


def _scaled(record: Record, config: FCOSConfig) -> np.ndarray:
    size = (record.size[1], record.size[0])
    return scale_boxes(torch.from_numpy(_kept(record)), size, input_size(size, config)).numpy()


def options_for(config: DetectorConfig, better: DetectorConfig) -> tuple[str, ...]:
    """Options of ``fcos-fast train`` that change the ranges and the size of ``config`` to those of ``better``."""
    options: list[str] = []
    if isinstance(config, FCOSConfig) and isinstance(better, FCOSConfig) and better.rule != config.rule:
        options += ["--model.rule.sizes_of_interest", str(list(better.rule.sizes_of_interest))]
    if better.min_size != config.min_size:
        options += ["--model.min_size", str(better.min_size)]
        if better.max_size is not None:
            options += ["--model.max_size", str(better.max_size)]
    return tuple(options)
