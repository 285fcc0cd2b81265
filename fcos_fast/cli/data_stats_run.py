"""The part of ``fcos-fast data stats`` that needs torch."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from typing import Any

from fcos_fast.data import DetectionDataset
from fcos_fast.engine.box_statistics import (
    PERCENTILES,
    LevelStatistics,
    best_size,
    box_sizes,
    level_statistics,
    options_for,
    sample,
    size_statistics,
    suggest_ranges,
)
from fcos_fast.models import FCOSConfig
from fcos_fast.text import printable


def statistics(dataset: DetectionDataset, config: FCOSConfig, images: int) -> dict[str, Any]:
    """Everything that the subcommand reports, in plain values."""
    records = sample(dataset, images)
    names = dataset.categories.names
    counts = Counter(names[label] for record in records for label in record.labels[~record.ignore].tolist())
    if not counts:
        raise ValueError(
            "the images have no boxes, or only difficult ones and crowds, which training ignores; give a split with "
            "labeled images as --data.train"
        )
    better = suggest_ranges(records, config)
    sizes = size_statistics(records, better)
    best = best_size(sizes)
    final = suggest_ranges(records, best.config)  # another input size has other ranges
    return {
        "images": len(records),
        "of": len(dataset),
        "without_boxes": sum(bool(record.ignore.all()) for record in records),
        "boxes_per_class": {name: counts[name] for name in names},
        "box_sizes": box_sizes(records, config),
        "strides": config.strides,
        "now": _plain(config, level_statistics(records, config)),
        "better_ranges": _plain(better, level_statistics(records, better)),
        "sizes": [{"short_side": s.short_side, **_plain(s.config, s.levels)} for s in sizes],
        "suggested": _plain(final, level_statistics(records, final)),
        "options": list(options_for(config, final)),
    }


def _plain(config: FCOSConfig, levels: LevelStatistics) -> dict[str, Any]:
    return {
        "sizes_of_interest": list(config.rule.sizes_of_interest),
        "min_size": config.min_size,
        "max_size": config.max_size,
        **asdict(levels),
    }


def report(found: dict[str, Any]) -> str:
    """The statistics as text."""
    now, ranges = found["now"], found["better_ranges"]
    levels = [f"P{stride.bit_length() - 1}" for stride in found["strides"]]
    lines = [
        f"{found['images']} of {found['of']} images, {found['without_boxes']} of them without boxes; "
        f"{now['num_boxes']} boxes",
        ", ".join(f"{printable(name)} {count}" for name, count in found["boxes_per_class"].items()),
        "",
        f"{'in pixels of the input':22}" + "".join(f"{f'p{p}':>8}" for p in PERCENTILES),
        *(f"{name:22}" + "".join(f"{v:8.0f}" for v in values) for name, values in found["box_sizes"].items()),
        "",
        f"{'boxes per level':34}" + "".join(f"{level:>8}" for level in levels) + f"{'none':>8}",
        _level_row(f"current, bounds {_bounds(now)}", now),
        _level_row(f"suggested, {_bounds(ranges)}", ranges),
        "",
        f"{'input size, suggested bounds':34}{'p5, shorter side':>20}{'boxes on no level':>20}",
        *(
            f"{_size(size):34}{size['short_side']:20.0f}{size['unassigned'] / max(1, size['num_boxes']):20.2%}"
            for size in found["sizes"]
        ),
        "",
    ]
    if found["options"]:
        pairs = zip(found["options"][::2], found["options"][1::2], strict=True)
        given = " ".join(f'{name} "{value}"' if " " in value else f"{name} {value}" for name, value in pairs)
        lines += [
            _level_row(f"with both, {_bounds(found['suggested'])}", found["suggested"]),
            f"suggested: {given}",
        ]
    else:
        lines.append("the current ranges and input size suit these boxes")
    return "\n".join(lines)


def _bounds(found: dict[str, Any]) -> str:
    return " ".join(f"{bound:g}" for bound in found["sizes_of_interest"])


def _size(found: dict[str, Any]) -> str:
    longest = "" if found["max_size"] is None else f", longer at most {found['max_size']}"
    return f"shorter side {found['min_size']}{longest}"


def _level_row(title: str, found: dict[str, Any]) -> str:
    return f"{title:34}" + "".join(f"{n:8}" for n in found["on_level"]) + f"{found['unassigned']:8}"
