"""What a run prints: on the terminal in one of three forms, and all of it in ``train.log``."""

from __future__ import annotations

import json
import math
import shlex
import sys
import time
import traceback
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, TextIO

from fcos_fast.engine.callbacks import Callback
from fcos_fast.engine.launch import is_rank_0

if TYPE_CHECKING:
    from fcos_fast.engine.run import Run
    from fcos_fast.engine.train import TrainResult

LOG = "train.log"

Mode = Literal["normal", "quiet", "json"]


class RunOutput:
    """Replaces stdout and stderr within a ``with`` block by streams that also write to the log of a run.

    ``normal`` prints as usual. ``quiet`` prints only what goes to stderr, without progress. ``json`` prints one JSON
    object per line on stdout: those of :meth:`event`, and ``{"event": "message", "text": ...}`` for each other line.
    What is printed before :meth:`open` is written to the log then. Only rank 0 writes a log.
    """

    def __init__(self, mode: Mode = "normal") -> None:
        self.mode = mode
        self._log: TextIO | None = None
        self._is_opened = False
        self._before: list[str] = []

    def __enter__(self) -> RunOutput:
        self._real = sys.stdout, sys.stderr
        self._messages = _Lines(self._message)
        show = {"normal": sys.stdout.write, "quiet": lambda _: None, "json": self._messages}[self.mode]
        sys.stdout = _Stream(sys.stdout, show, self._write_log)
        sys.stderr = _Stream(sys.stderr, sys.stderr.write, self._write_log)
        sys.stderr.shows_progress = self.mode == "normal"
        return self

    def open(self, folder: Path, is_start: bool = True) -> None:
        """Start writing ``folder/train.log``, after what is in it, with the time if a run starts or resumes."""
        self._is_opened = True
        if not is_rank_0():
            return
        self._log = open(folder / LOG, "a", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115
        if is_start:
            self._log.write(f"# {datetime.now().astimezone():%Y-%m-%d %H:%M:%S %z}  {shlex.join(sys.argv)}\n")
        self._log.writelines(self._before)
        self._before.clear()

    def event(self, kind: str, **values: Any) -> None:
        """Print a JSON object if the mode is ``json``; NaN and infinities become null."""
        if self.mode == "json" and is_rank_0():
            plain = {
                k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()
            }
            self._real[0].write(json.dumps({"event": kind, **plain}, allow_nan=False) + "\n")
            self._real[0].flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.stdout.flush()
        self._messages("\n")  # the end of a line that has none
        sys.stdout, sys.stderr = self._real
        if error is not None:
            self._write_log("".join(traceback.format_exception(error)))
            self.event("error", message=str(error) or type(error).__name__)
        if self._log is not None:
            self._log.close()
            self._log = None

    def _message(self, line: str) -> None:
        if line.strip():
            self.event("message", text=line)

    def _write_log(self, text: str) -> None:
        if "\r" in text:  # redraws a progress bar
            return
        if self._log is None:
            if not self._is_opened:  # otherwise the run has ended, or the disk is full
                self._before.append(text)
            return
        try:
            self._log.write(text)
        except OSError as error:  # a full disk: the run goes on until it cannot write its checkpoint
            self._log = None
            print(f"{LOG} ends here, it cannot be written: {error.strerror}", file=self._real[1])


class _Stream:
    """A text stream whose ``write`` calls two functions; the rest is that of the real one."""

    shows_progress = True

    def __init__(self, real: TextIO, *writes: Any) -> None:
        self._real, self._writes = real, writes

    def write(self, text: str) -> int:
        for write in self._writes:
            write(text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


class _Lines:
    """Collects text and calls a function with each whole line."""

    def __init__(self, function: Any) -> None:
        self.function, self.rest = function, ""

    def __call__(self, text: str) -> None:
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines:
            self.function(line)


class JsonEvents(Callback):
    """Prints the run as the events ``start``, ``step`` (at most one per second), ``epoch`` and ``end``."""

    def __init__(self, output: RunOutput) -> None:
        self.output = output
        self.last = -math.inf

    def on_start(self, run: Run) -> None:
        """Print ``start``."""
        self.output.event(
            "start",
            folder=str(run.folder),
            epoch=run.state.epoch,
            epochs=run.total_epochs,
            step=run.state.step,
            steps=run.total_steps,
            images=len(run.train_set),
            classes=list(run.train_set.categories.names),
            device=str(run.device),
        )

    def on_step(self, run: Run, row: dict[str, float]) -> None:
        """Print ``step``."""
        now = time.monotonic()
        if now - self.last >= 1:
            self.last = now
            self.output.event("step", **row, seconds_left=run.seconds_left())

    def on_epoch_end(self, run: Run, row: dict[str, float]) -> None:
        """Print ``epoch``."""
        self.output.event("epoch", **row, seconds_left=run.seconds_left())

    def on_end(self, run: Run, result: TrainResult | None) -> None:
        """Print ``end``; the event ``error`` comes instead after a failure."""
        if result is not None:
            metrics = {} if result.result is None else result.result.summary()
            self.output.event("end", folder=str(run.folder), stopped=result.stopped, **metrics)
