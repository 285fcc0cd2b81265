"""The folder of one run, and the table of its epochs."""

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
"""File in a run's folder that the process that writes there holds locked."""


class RunInUseError(OSError):
    """Another process writes into the folder of the run; the message names it."""


def new_run_folder(parent: str | Path, name: str) -> Path:
    """Create the first of ``parent/name``, ``parent/name2``, ``parent/name3``, ... that does not exist yet."""
    parent = Path(parent)
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}{number}")
        try:
            folder.mkdir()  # fails where another run took the name just now
            return folder
        except FileExistsError:
            number += 1


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Let no other process write into the folder of a run, and remove what killed ones left half-written.

    The system unlocks when the process ends, however it ends, so a crashed one blocks nobody.

    Raises:
        RunInUseError: another process has the folder.
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
        path.unlink(missing_ok=True)  # before it is unlocked: what others create then is theirs
        _descriptors.discard(descriptor)
        os.close(descriptor)


def _lock(path: Path) -> int:
    """The descriptor of the file, created and locked."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 1000).decode(errors="replace") or "another process"
            os.close(descriptor)
            raise RunInUseError(
                f"{path.parent}: {printable(holder)} is training there; wait until it ends, or end it"
            ) from None
        except OSError as error:  # some network file systems
            print(
                f"{path.parent}: no locks on this file system ({error.strerror}); start no second run in it"
            )
            return descriptor
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        os.close(descriptor)  # its holder removed the file between our opening and locking it


_descriptors: set[int] = set()  # of held locks


def _close_descriptors() -> None:
    """A loader's worker must not go on holding the lock when its parent was killed."""
    for descriptor in _descriptors:
        os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_close_descriptors)


class MetricsTable:
    """``metrics.csv``: one row per epoch, the file always whole.

    Args:
        path: the file.
        epochs: number of finished epochs; rows of later epochs, left by a run that was killed before it wrote its
            checkpoint, are dropped.
    """

    def __init__(self, path: str | Path, epochs: int = 0) -> None:
        self.path = Path(path)
        self.rows: list[dict[str, float]] = []
        if epochs and self.path.is_file():
            self.rows = [row for row in read_metrics(self.path) if row["epoch"] <= epochs]

    def append(self, row: dict[str, float]) -> None:
        """Add the row of an epoch and write the file; what is NaN was not measured and is left empty."""
        self.rows.append({name: value for name, value in row.items() if not math.isnan(value)})
        text = io.StringIO()
        columns = dict.fromkeys(name for row in self.rows for name in row)
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows({k: f"{v:.6g}" for k, v in row.items()} for row in self.rows)
        write_text(self.path, text.getvalue())


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """The rows of a ``metrics.csv``; what an epoch did not measure is missing from its row."""
    with open(path, encoding="utf-8", newline="") as file:
        return [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
