"""Progress of a run: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import math
import os
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, TextIO

from fcos_fast.engine.launch import is_rank_0

if TYPE_CHECKING:
    import torch

BAR = "{desc} {percentage:3.0f}%|{bar:10}| {n}/{total}{postfix}"
RECENT = 100
"""Steps over which speed is averaged."""


class Progress:
    """Shows the number of finished steps, images per second, time left and given values.

    On a terminal it is a tqdm bar; elsewhere (log file, CI) a plain line every ``interval`` seconds. Only rank 0
    prints, and nobody if the output of the run is ``quiet`` or ``json``.

    Args:
        total: number of steps; None if it is not known.
        title: text before the numbers.
        images: images per step, for images per second.
        interval: seconds between plain lines.
        file: output, ``sys.stderr`` by default.
    """

    def __init__(
        self,
        total: int | None,
        title: str,
        images: int = 1,
        interval: float = 10.0,
        file: TextIO | None = None,
    ) -> None:
        self.total, self.title, self.images, self.interval = total, title, images, interval
        self.file = file or sys.stderr
        self.step = 0
        self.start = self.last_line = time.perf_counter()
        self.bar = None
        if not is_rank_0() or not getattr(self.file, "shows_progress", True):
            self.interval = math.inf
        elif self.file.isatty():
            from tqdm import tqdm

            self.bar = tqdm(
                total=total,
                desc=title,
                file=self.file,
                leave=False,
                dynamic_ncols=True,
                bar_format=None if total is None else BAR,
            )

    def update(self, values: dict[str, float | str] | None = None, left: str | None = None) -> None:
        """Count a finished step.

        Args:
            values: shown by name.
            left: time left in words; None: that of the remaining steps.
        """
        self.step += 1
        now = time.perf_counter()
        if self.bar is None and now - self.last_line < self.interval:
            return
        elapsed = max(now - self.start, 1e-9)
        if left is None and self.total is not None:
            left = f"left {readable_time((self.total - self.step) * elapsed / self.step)}"
        shown = [f"{name} {v if isinstance(v, str) else f'{v:.3f}'}" for name, v in (values or {}).items()]
        text = "  ".join([left or "", f"{self.step * self.images / elapsed:.1f} images/s", *shown]).lstrip()
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update()
        else:
            self.last_line = now
            done = f"{self.step}" if self.total is None else f"{self.step}/{self.total}"
            print(f"{self.title}  {done}  {text}", file=self.file, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.close()


class RunClock:
    """Estimates the time left of a run from its latest steps and its last evaluation.

    Args:
        evaluation_steps: the first evaluation is expected to take as long as this many steps.
    """

    def __init__(self, evaluation_steps: float) -> None:
        self.evaluation_steps = evaluation_steps
        self.evaluation: float | None = None
        self._ends: deque[float] = deque(maxlen=RECENT + 1)

    def begin(self) -> None:
        """Begin to measure steps; what came before, such as an evaluation, does not count."""
        self._ends.clear()

    def step(self) -> None:
        """Count a finished step."""
        self._ends.append(time.perf_counter())
        if len(self._ends) > 1:
            self.seconds_per_step = (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)

    seconds_per_step: float = math.nan

    def left(self, steps: int, evaluations: int) -> float:
        """Seconds for this many steps and evaluations; NaN before the second step."""
        evaluation = self.evaluation
        if evaluation is None:
            evaluation = self.evaluation_steps * self.seconds_per_step
        return steps * self.seconds_per_step + evaluations * evaluation


def readable_time(seconds: float) -> str:
    """``30 s``, ``0:12:34``; a question mark if it is not known."""
    if math.isnan(seconds):
        return "?"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02.0f}"


def memory_in_use(device: torch.device) -> str:
    """Memory of this process: what torch has reserved on a GPU, or the resident set on a CPU."""
    if device.type == "cuda":
        import torch

        return f"{torch.cuda.memory_reserved(device) / 1e9:.1f} GB"
    with open("/proc/self/statm", encoding="ascii") as file:
        pages = int(file.read().split()[1])
    return f"{pages * os.sysconf('SC_PAGE_SIZE') / 1e9:.1f} GB"
