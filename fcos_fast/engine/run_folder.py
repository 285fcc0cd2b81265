"""The folder of a run, its lock, and its table of metrics."""

from __future__ import annotations

import csv
import fcntl
import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fcos_fast.engine.files import remove_temporary, write_text
from fcos_fast.text import printable

LOCK = ".lock"
"""File in the folder of a run that the process writing there keeps locked."""


class RunInUseError(OSError):
    """Another process is writing into the folder of the run; the message names it."""


def new_run_folder(parent: str | Path, name: str) -> Path:
    """Create the first of ``parent/name``, ``parent/name2``, ``parent/name3``, ... that does not exist."""
    parent = Path(parent)
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}{number}")
        try:
            folder.mkdir()  # fails if another run has just created it
            return folder
        except FileExistsError:
            number += 1


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Lock the folder of a run within the block, and first remove the temporary files of killed processes.

    The system releases the lock when the process ends in any way, so a crashed process blocks nobody.

    Raises:
        RunInUseError: another process has locked the folder.
    """
    path = Path(folder) / LOCK
    descriptor = _lock(path)
    _descriptors.add(descriptor)
    try:
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {os.uname().nodename}".encode())
        remove_temporary(path.parent)
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is locked: afterwards the file may be another process's
        _descriptors.discard(descriptor)
        os.close(descriptor)


def _lock(path: Path) -> int:
    """Create and lock the file; returns its descriptor."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 1000).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise RunInUseError(
                f"{path.parent}: {printable(holder)} is training there; wait until it ends, or stop it"
            ) from None
        except OSError as error:  # some network file systems
            print(
                f"{path.parent}: this file system has no locks ({error.strerror}); do not start a second run in it"
            )
            return descriptor
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)  # its owner removed the file between open and flock


_descriptors: set[int] = set()  # of the locks of this process


def _close_descriptors() -> None:
    """A dataloader worker must not keep the lock when its parent is killed."""
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_close_descriptors)


class MetricsTable:
    """``metrics.csv``: one row per epoch, written atomically.

    Args:
        path: the file.
        epochs: number of finished epochs. Rows of later epochs are dropped; a run that was killed before it wrote its
            checkpoint leaves one.
    """

    def __init__(self, path: str | Path, epochs: int = 0) -> None:
        self.path = Path(path)
        self.rows: list[dict[str, float]] = []
        if epochs and self.path.is_file():
            self.rows = [row for row in read_metrics(self.path) if row["epoch"] <= epochs]

    def append(self, row: dict[str, float]) -> None:
        """Append the row of an epoch, or replace it, and write the file; NaN is written as an empty cell."""
        self.rows = [other for other in self.rows if other["epoch"] != row["epoch"]]
        self.rows.append({name: value for name, value in row.items() if not math.isnan(value)})
        text = io.StringIO()
        columns = dict.fromkeys(name for row in self.rows for name in row)
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" for k, v in row.items()} for row in self.rows)
        write_text(self.path, text.getvalue())


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """The rows of a ``metrics.csv``, without their empty cells."""
    with open(path, encoding="utf-8", newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
