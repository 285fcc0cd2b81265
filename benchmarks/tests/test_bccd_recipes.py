"""Runs in alternation: each gets its turn when it has trained for the least time."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("torchvision")

from benchmarks import bccd_recipes
from benchmarks.report import curve_table


def test_the_run_with_the_least_time_is_next(monkeypatch):
    clock, order = [0.0], []
    monkeypatch.setattr(bccd_recipes.time, "perf_counter", lambda: clock[0])

    def run(name, seconds, epochs):
        for epoch in range(1, epochs + 1):
            clock[0] += seconds
            order.append(name)
            yield lambda epoch=epoch: SimpleNamespace(ap=epoch / 10, ap50=0.5)

    saved = []
    curves = bccd_recipes.alternate({"slow": run("slow", 3, 2), "fast": run("fast", 1, 5)}, 2, saved.append)
    assert order == ["slow", "fast", "fast", "fast", "slow", "fast", "fast"]
    assert [point["epoch"] for point in curves["fast"]] == [2, 4, 5]
    assert [point["seconds"] for point in curves["slow"]] == [6]
    assert len(saved) == 4
    assert curve_table(curves, 0.4).splitlines()[-1] == "| fast | 0.500 | 0.500 | 0.1 | 0.1 |"
