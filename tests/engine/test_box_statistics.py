"""Boxes per level compared with a count in plain loops, and suggestions that are better."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fcos_fast.assignment import RULES
from fcos_fast.data import Categories, DetectionDataset, Record
from fcos_fast.engine.box_statistics import (
    best_size,
    box_sizes,
    input_size,
    level_statistics,
    sample,
    size_statistics,
    suggest_ranges,
)
from fcos_fast.models import FCOSConfig

CONFIG = FCOSConfig(min_size=64, max_size=96)


def record(boxes, size=(96, 64), ignore=None):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    ignore = np.zeros(len(boxes), bool) if ignore is None else np.array(ignore)
    return Record("x.jpg", size, boxes, np.zeros(len(boxes), np.int64), ignore, np.zeros(()))


def random_records(count=5):
    rng = np.random.default_rng(0)
    records = []
    for _ in range(count):
        size = (int(rng.integers(80, 200)), int(rng.integers(60, 160)))
        corners = np.sort(rng.uniform(0, 1, (6, 2, 2)), axis=1).reshape(6, 4) * np.array(size * 2)
        records.append(record(corners, size))
    return records


def counted(records, config):
    """Official FCOS's rule with center sampling, in plain loops over locations and boxes."""
    on_level, lost, total = np.zeros(5, int), 0, 0
    for r in records:
        h, w = input_size((r.size[1], r.size[0]), config)
        height, width = (-(-side // 32) * 32 for side in (h, w))
        boxes = r.boxes.astype(np.float32) * np.array([w / r.size[0], h / r.size[1]] * 2, np.float32)
        bounds = (-1, *config.rule.sizes_of_interest, np.inf)
        seen = set()
        for level, stride in enumerate(config.strides):
            here = set()
            for y in range(stride // 2, -(-height // stride) * stride, stride):
                for x in range(stride // 2, -(-width // stride) * stride, stride):
                    best, area = None, np.inf
                    for i, (x1, y1, x2, y2) in enumerate(boxes):
                        cx, cy, r_ = (x1 + x2) / 2, (y1 + y2) / 2, 1.5 * stride
                        inside = max(x1, cx - r_) < x < min(x2, cx + r_) and max(y1, cy - r_) < y < min(
                            y2, cy + r_
                        )
                        reach = max(x - x1, y - y1, x2 - x, y2 - y)
                        if (
                            inside
                            and bounds[level] <= reach <= bounds[level + 1]
                            and (x2 - x1) * (y2 - y1) < area
                        ):
                            best, area = i, (x2 - x1) * (y2 - y1)
                    if best is not None:
                        here.add(best)
            on_level[level] += len(here)
            seen |= here
        lost += len(boxes) - len(seen)
        total += len(boxes)
    return tuple(on_level), lost, total


def test_boxes_on_levels_are_counted_location_by_location():
    config = replace(
        CONFIG, rule=replace(RULES["official-improved"], sizes_of_interest=(12.0, 24.0, 48.0, 96.0))
    )
    records = random_records()
    found = level_statistics(records, config)
    assert (found.on_level, found.unassigned, found.num_boxes) == counted(records, config)
    assert found.unassigned > 0  # otherwise they would not be tested


def test_a_box_between_locations_and_one_under_a_smaller_one_are_lost():
    # locations of P3 are at 4, 12, 20, ...; the second box contains only 12, which is assigned to the smaller third
    found = level_statistics([record([[5, 5, 11, 11], [8, 8, 16, 16], [9, 9, 15, 15]])], CONFIG)
    assert (found.num_boxes, found.unassigned, found.on_level) == (3, 2, (1, 0, 0, 0, 0))
    assert found.lost_side == 7


def test_ignored_boxes_do_not_count():
    found = level_statistics([record([[0, 0, 30, 30], [20, 20, 60, 60]], ignore=[True, False])], CONFIG)
    assert found.num_boxes == 1


def test_sizes_are_in_input_pixels():
    records = [record([[0, 0, 40, 20]], size=(192, 128))]  # halved to 96x64
    sizes = box_sizes(records, CONFIG)
    assert sizes["sqrt(area)"] == pytest.approx([200**0.5] * 7)
    assert sizes["longer side"] == [20.0] * 7
    assert sizes["shorter side"] == [10.0] * 7


def test_suggested_ranges_are_more_even_without_losing_boxes():
    records = random_records(20)
    better = suggest_ranges(records, CONFIG)
    before, after = level_statistics(records, CONFIG), level_statistics(records, better)
    assert better.rule.sizes_of_interest != CONFIG.rule.sizes_of_interest
    assert after.share_unassigned <= before.share_unassigned + 0.001
    assert after.evenness > before.evenness


def test_best_size_is_the_smallest_with_large_enough_boxes():
    records = [record([[10, 10, 90, 70]], size=(256, 256))]
    config = replace(CONFIG, min_size=256, max_size=512)
    sizes = size_statistics(records, config)
    assert [s.config.min_size for s in sizes] == [128, 192, 256, 320, 384, 512]
    assert [s.config.max_size for s in sizes] == [256, 384, 512, 640, 768, 1024]
    assert best_size(sizes).config.min_size == 128  # its shorter side is 30, the minimum 16
    small = size_statistics([record([[10, 10, 30, 30]], size=(256, 256))], config)
    assert best_size(small).config.min_size == 256  # 20, and 15 at 192


def test_a_sample_is_evenly_spaced():
    records = [replace(record([]), name=str(i)) for i in range(100)]
    dataset = DetectionDataset(records, Categories(("cell",)))
    assert [r.name for r in sample(dataset, 5)] == ["0", "25", "50", "74", "99"]
    assert [r.name for r in sample(dataset, 1000)] == [str(i) for i in range(100)]
