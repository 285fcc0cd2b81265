"""Output with and without a terminal."""

from __future__ import annotations

import io
import math
import time

import pytest

from fcos_fast.engine import progress as progress_module
from fcos_fast.engine.progress import Progress, RunClock, readable_time
from tests.child import assert_runs


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_lines_at_an_interval(monkeypatch):
    clock = iter(range(0, 1000))  # one second per call
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: float(next(clock)))
    file = io.StringIO()
    with Progress(40, "epoch 1/2", images=8, interval=10, file=file) as progress:
        for _ in range(40):
            progress.update({"loss": 1.25})
    lines = file.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[0] == "epoch 1/2  10/40  left 30 s  8.0 images/s  loss 1.250"


def test_bar_on_a_terminal():
    file = Terminal()
    with Progress(3, "evaluate", images=4, file=file) as progress:
        for _ in range(3):
            time.sleep(0.15)  # the bar is drawn ten times a second at most
            progress.update({"loss": 0.5})
    assert "evaluate" in file.getvalue()
    assert "images/s" in file.getvalue()
    assert "loss 0.500" in file.getvalue()


def test_short_work_without_a_terminal_is_silent():
    file = io.StringIO()
    with Progress(3, "evaluate", file=file) as progress:
        for _ in range(3):
            progress.update()
    assert file.getvalue() == ""


def test_the_time_left_of_a_run_counts_its_evaluations(monkeypatch):
    """Steps of two seconds, after a first one whose duration is not known; an evaluation in between does not count."""
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: now[0])
    clock = RunClock(evaluation_steps=3)
    assert math.isnan(clock.left(5, 1))
    for epoch in range(2):
        clock.begin()
        for _ in range(4):
            clock.step()
            now[0] += 2
        if epoch == 0:
            assert clock.left(10, 2) == 10 * 2 + 2 * 3 * 2  # expected, from the number of images
            now[0] += 50
            clock.evaluation = 50
    assert clock.left(10, 2) == 10 * 2 + 2 * 50


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(math.nan, "?"), (0.4, "0 s"), (99.4, "99 s"), (100, "0:01:40"), (7322.6, "2:02:03")],
)
def test_readable_time(seconds, text):
    assert readable_time(seconds) == text


def test_memory_is_that_of_this_process():
    """In a new process: one that has freed memory reuses it for the block."""
    assert_runs(
        """
        import torch
        from fcos_fast.engine.progress import memory_in_use
        before = float(memory_in_use(torch.device("cpu")).removesuffix(" GB"))
        block = torch.ones(100_000_000)  # 0.4 GB
        after = float(memory_in_use(torch.device("cpu")).removesuffix(" GB"))
        assert 0.3 <= round(after - before, 1) <= 0.5, (before, after)
        """
    )


def test_the_time_left_of_the_run_replaces_that_of_the_steps():
    file = io.StringIO()
    with Progress(4, "epoch 1/2", interval=0, file=file) as progress:
        progress.update({"loss": 0.5, "bbox_ctrness": "0.610 (floor 0.580)"}, "run left 0:12:34")
    line = file.getvalue()
    assert line.startswith("epoch 1/2  1/4  run left 0:12:34  ")
    assert line.endswith("  loss 0.500  bbox_ctrness 0.610 (floor 0.580)\n")
