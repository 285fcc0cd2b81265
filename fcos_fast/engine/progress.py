"""Progress of a run: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import math
import sys
import time
from typing import TextIO

from fcos_fast.engine.launch import launched

BAR = "{desc} {percentage:3.0f}%|{bar}| {n}/{total}  {elapsed} (left {remaining}){postfix}"


class Progress:
    """Shows the number of finished steps, images per second, time left and given values.

    On a terminal it is a tqdm bar; elsewhere (log file, CI) a plain line every ``interval`` seconds. Only rank 0
    prints.

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
        if not _prints():
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

    def update(self, values: dict[str, float] | None = None) -> None:
        """Count a finished step; ``values`` are shown by name."""
        self.step += 1
        now = time.perf_counter()
        if self.bar is None and now - self.last_line < self.interval:
            return
        rate = self.step * self.images / max(now - self.start, 1e-9)
        text = "  ".join(
            [f"{rate:.1f} images/s", *(f"{name} {value:.3f}" for name, value in (values or {}).items())]
        )
        if self.bar is not None:
            self.bar.set_postfix_str(text, refresh=False)
            self.bar.update()
        else:
            self.last_line = now
            done = str(self.step)
            if self.total is not None:
                left = (self.total - self.step) * (now - self.start) / self.step
                done += f"/{self.total}  left {left:.0f} s"
            print(f"{self.title}  {done}  {text}", file=self.file, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.close()


def _prints() -> bool:
    """Whether this is the only process, or rank 0; torch is imported for several only."""
    if not launched():
        return True
    from fcos_fast.engine.distributed import is_main

    return is_main()
