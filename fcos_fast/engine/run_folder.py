"""The folder of one run, and the table of its epochs."""

from __future__ import annotations

import csv
import io
import math
from pathlib import Path

from fcos_fast.engine.files import write_text


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
