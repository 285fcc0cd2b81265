"""What a finished run prints."""

from __future__ import annotations

import shlex

from fcos_fast.engine.report import write_report
from fcos_fast.engine.train import TrainResult


def present(outcome: TrainResult) -> None:
    """Write the report of a finished run; print its average precision and the files to look at."""
    folder = outcome.folder
    checkpoint = shlex.quote(str(folder / "best.pt"))
    if outcome.result is not None and outcome.val_set is not None and outcome.detections is not None:
        config = (folder / "config.yaml").read_text(encoding="utf-8")
        title = f"{type(outcome.model).__name__} on {outcome.config.data.root}"
        page = write_report(
            folder, title, outcome.val_set, outcome.detections, outcome.result, {"Configuration": config}
        )
        print(f"\n{outcome.result.table()}\n\nreport   {page}\nsheet    {folder / 'sheet.png'}")
    print(f"detect   fcos-fast detect --checkpoint {checkpoint} IMAGES_OR_FOLDERS")
