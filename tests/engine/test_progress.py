"""Output with and without a terminal."""

from __future__ import annotations

import io
import time

from fcos_fast.engine import progress as progress_module
from fcos_fast.engine.progress import Progress


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
