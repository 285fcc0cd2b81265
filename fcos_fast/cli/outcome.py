"""What a finished run or evaluation writes and prints."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from torch import Tensor

from fcos_fast.data import DetectionDataset
from fcos_fast.engine.average_precision import AveragePrecision, coco_results
from fcos_fast.engine.files import json_list, write_json
from fcos_fast.engine.output import RunOutput
from fcos_fast.engine.report import write_report
from fcos_fast.engine.train import TrainResult


@contextmanager
def in_log_of(outcome: TrainResult) -> Iterator[None]:
    """Write what is printed in the block to the log of a finished run too."""
    with RunOutput(outcome.config.train.output) as output:
        output.open(outcome.folder, is_start=False)
        yield


def present(outcome: TrainResult) -> None:
    """Write the report of a finished run; print its average precision and the files to look at."""
    folder = outcome.folder
    best = folder / "best.pt"
    # without best.pt the run was stopped before its first evaluation
    checkpoint = shlex.quote(str(best if best.exists() else folder / "last.pt"))
    if outcome.result is not None and outcome.val_set is not None and outcome.detections is not None:
        config = (folder / "config.yaml").read_text(encoding="utf-8")
        title = f"{type(outcome.model).__name__} on {outcome.config.data.root}"
        page = write_report(
            *(folder, title, outcome.val_set, outcome.detections, outcome.result, {"Configuration": config}),
            about=outcome.model.title,
            parameters=sum(p.numel() for p in outcome.model.parameters()),
        )
        print(f"\n{outcome.result.table()}\n\nreport   {page}\nsheet    {folder / 'sheet.png'}")
    print(f"detect   fcos-fast detect --checkpoint {checkpoint} IMAGES_OR_FOLDERS")


def present_evaluation(
    folder: Path,
    title: str,
    dataset: DetectionDataset,
    detections: Sequence[dict[str, Tensor]],
    result: AveragePrecision,
    output: Path,
    about: str = "",
) -> None:
    """Write metrics, report and detections of an evaluation; print its average precision and the files.

    Args:
        folder: folder of the files.
        title: title of the report.
        dataset: evaluated dataset.
        detections: detections of each of its images.
        result: average precision of the detections.
        output: file for the detections, in COCO's result format.
        about: the model and what it ran on, in words.
    """
    write_json(folder / "metrics.json", asdict(result))
    with json_list(output) as append:
        for annotation in coco_results(dataset, detections):
            append(annotation)
    page = write_report(folder, title, dataset, detections, result, {}, about=about)
    print(f"\n{result.table()}\n\nreport   {page}\nsheet    {folder / 'sheet.png'}\nresults  {output}")
