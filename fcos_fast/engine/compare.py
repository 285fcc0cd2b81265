"""Runs side by side: what differs in their configurations, and what came of it. Needs no torch."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fcos_fast.engine.page import Cell, number, page, paragraph, plots, table
from fcos_fast.engine.plots import Plot
from fcos_fast.engine.run_folder import read_metrics
from fcos_fast.engine.training_curves import class_columns, series
from fcos_fast.text import printable

BOOKKEEPING = ("train.runs", "train.name")
"""Options that differ between any two runs and say nothing."""

MEASURES = {
    **{"ap": "AP", "ap50": "AP50", "ap75": "AP75"},
    **{"ap_small": "AP small", "ap_medium": "AP medium", "ap_large": "AP large", "ar100": "average recall"},
}
"""Column of ``metrics.csv`` -> its name for readers."""

Row = tuple[str, list[float], int]
"""What is measured, the value of each run (NaN if it is not known), and the number of digits."""


@dataclass(frozen=True)
class RunResult:
    """What the folder of a run or an evaluation contains.

    Attributes:
        name: the folder, as given.
        config: option to value; empty for an evaluation.
        history: rows of ``metrics.csv``; empty for an evaluation.
        average_precision: ``ap``, ``ap50``, ... to value.
        per_class: class name to AP.
        lost_precision: type of error of TIDE to what AP50 would gain without it; empty before the end of a run.
        precisions: precision at recalls 0, 0.01, ..., 1 and IoU 0.5, mean over classes; empty before the end of a run.
        f1s: F1 at score thresholds 0, 0.01, ..., 1.
        images, objects: what it was evaluated on; None before the end of a run.
        seconds: training time, evaluation included; NaN for an evaluation.
        parameters: number of parameters of the model; NaN if it is not known.
        megabytes: size of ``best.pt``; NaN without it.
        images_per_second: speed of the evaluation.
    """

    name: str
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    average_precision: dict[str, float] = field(default_factory=dict)
    per_class: dict[str, float] = field(default_factory=dict)
    lost_precision: dict[str, float] = field(default_factory=dict)
    precisions: list[float] = field(default_factory=list)
    f1s: list[float] = field(default_factory=list)
    images: int | None = None
    objects: int | None = None
    seconds: float = math.nan
    parameters: float = math.nan
    megabytes: float = math.nan
    images_per_second: float = math.nan


def read_run(folder: str | Path) -> RunResult:
    """Read the folder of a run of ``fcos-fast train``, finished or not, or of ``fcos-fast evaluate``.

    Raises:
        ValueError: the folder does not exist, is not that of a run, or has a file that cannot be read.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ValueError(f"{path}: there is no such folder; give folders of fcos-fast train or evaluate")
    analysis = _read(path / "analysis.json", _read_analysis)
    history = _read(path / "metrics.csv", _read_history)
    config = _read(path / "config.yaml", _read_config)
    if analysis is None and not history:
        has = (
            "it has no finished epoch yet" if config else "it contains neither metrics.csv nor analysis.json"
        )
        raise ValueError(f"{path}: is not the folder of a run with results: {has}")
    weights = path / "best.pt"
    return RunResult(
        name=str(folder),
        config=config or {},
        history=history or [],
        seconds=sum(row.get("seconds", math.nan) for row in history) if history else math.nan,
        megabytes=weights.stat().st_size / 1e6 if weights.is_file() else math.nan,
        **(analysis or _of_history(history or [])),
    )


def _read(file: Path, read: Callable[[Path], Any]) -> Any:
    if not file.is_file():
        return None
    try:
        return read(file)
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        RecursionError,
        csv.Error,
        yaml.YAMLError,
    ) as error:
        why = " ".join(repr(error).split())
        raise ValueError(
            f"{file}: is not a file of fcos-fast train or evaluate ({why}); write it again"
        ) from error


def _read_config(file: Path) -> dict[str, Any]:
    return dict(_flat(yaml.safe_load(file.read_text(encoding="utf-8"))))


def _read_history(file: Path) -> list[dict[str, float]]:
    rows = read_metrics(file)
    return [{"epoch": row["epoch"], **row} for row in rows]


def _read_analysis(file: Path) -> dict[str, Any]:
    analysis = json.loads(file.read_text(encoding="utf-8"))
    metrics, overall = analysis["average_precision"], analysis["overall"]
    return {
        "average_precision": {name: _number(metrics[name]) for name in MEASURES},
        "per_class": {name: _number(ap) for name, ap in metrics["per_class"].items()},
        "lost_precision": {name: _number(lost) for name, lost in analysis["lost_precision"].items()},
        "precisions": list(overall["precisions"]),
        "f1s": list(overall["f1s"]),
        "images": int(analysis["images"]),
        "objects": int(overall["objects"]),
        "parameters": _number(analysis["parameters"]),
        "images_per_second": _number(metrics["images_per_second"]),
    }


def _of_history(history: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """The metrics of the last epoch that was evaluated."""
    last = next((row for row in reversed(history) if "ap" in row), {})
    return {
        "average_precision": {name: last.get(name, math.nan) for name in MEASURES},
        "per_class": {name: last[column] for column, name in class_columns(last).items()},
    }


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def differences(runs: Sequence[RunResult]) -> dict[str, list[str]]:
    """Option to the value in each run, for the options that differ; ``–`` for a run without it.

    Folders without a configuration, those of evaluations, are no difference.
    """
    options = dict.fromkeys(name for run in runs for name in run.config if name not in BOOKKEEPING)
    texts = {
        name: [_text(run.config[name]) if name in run.config else "–" for run in runs] for name in options
    }
    return {
        name: values
        for name, values in texts.items()
        if len({value for run, value in zip(runs, values, strict=True) if run.config}) > 1
    }


def _text(value: Any) -> str:
    return printable(value) if isinstance(value, str) else json.dumps(value, default=str)


def results(runs: Sequence[RunResult]) -> list[Row]:
    """The metrics over all classes, and what they cost."""
    rows = [(name, [run.average_precision[key] for run in runs], 3) for key, name in MEASURES.items()]
    costs: list[Row] = [
        ("epochs", [len(run.history) or math.nan for run in runs], 0),
        ("training minutes", [run.seconds / 60 for run in runs], 1),
        ("parameters, millions", [run.parameters / 1e6 for run in runs], 2),
        ("size of best.pt, MB", [run.megabytes for run in runs], 1),
        ("images/s in evaluation", [run.images_per_second for run in runs], 1),
    ]
    return [row for row in rows + costs if not all(map(math.isnan, row[1]))]


def per_class(runs: Sequence[RunResult]) -> list[Row]:
    """AP of each class."""
    classes = dict.fromkeys(name for run in runs for name in run.per_class)
    return [(name, [run.per_class.get(name, math.nan) for run in runs], 3) for name in classes]


def lost_precision(runs: Sequence[RunResult]) -> list[Row]:
    """What AP50 would gain without each type of error of TIDE."""
    errors = dict.fromkeys(name for run in runs for name in run.lost_precision)
    return [(name, [run.lost_precision.get(name, math.nan) for run in runs], 3) for name in errors]


def warning(runs: Sequence[RunResult]) -> str:
    """Why the metrics cannot be compared; empty if nothing is known against it."""
    known = {(run.images, run.objects) for run in runs if run.images is not None}
    if len(known) > 1:
        sets = ", ".join(f"{images} images with {objects} objects" for images, objects in sorted(known))
        return f"The runs were evaluated on different images ({sets}), so their AP cannot be compared."
    return ""


def comparison_text(runs: Sequence[RunResult]) -> str:
    """The comparison for a terminal; of metrics with the difference to the first run."""
    names = short_names(runs)
    parts = [warning(runs)] if warning(runs) else []
    options = differences(runs)
    if options:
        parts.append(_columns("configuration", names, [(name, values) for name, values in options.items()]))
    for heading, rows in (
        ("results", results(runs)),
        ("AP per class", per_class(runs)),
        ("AP50 lost by error", lost_precision(runs)),
    ):
        if rows:
            parts.append(_columns(heading, names, [(name, _changes(row, n)) for name, row, n in rows]))
    return "\n\n".join(parts)


def _changes(values: Sequence[float], digits: int) -> list[str]:
    """The values, and the difference to the first of those that are fractions."""
    texts = [number(value, digits) for value in values]
    if digits == 3:
        for i, value in enumerate(values[1:], 1):
            if not math.isnan(value - values[0]):
                texts[i] += f" ({round(value - values[0], 3) + 0.0:+.3f})"  # no negative zero
    return texts


def _columns(heading: str, names: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    lines = [(heading, *names), *((printable(name), *values) for name, values in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    first, *others = widths
    return "\n".join(
        "  ".join([line[0].ljust(first), *(t.rjust(w) for t, w in zip(line[1:], others, strict=True))])
        for line in lines
    )


def short_names(runs: Sequence[RunResult]) -> list[str]:
    """The last part of each folder's name, or all of them if two are equal."""
    full = [printable(run.name) for run in runs]
    last = [Path(name).resolve().name for name in full]
    return last if len(set(last)) == len(last) else full


def comparison_json(runs: Sequence[RunResult]) -> dict[str, Any]:
    """The comparison as plain values."""
    return {"runs": [asdict(run) for run in runs], "differences": differences(runs)}


def comparison_page(runs: Sequence[RunResult]) -> str:
    """The comparison as a self-contained HTML page."""
    names = short_names(runs)
    sections = {
        "Results": _table("Metrics of the evaluation, and what they cost", names, results(runs)),
        "Configuration": table(
            "Options that differ", ("option", *names), [(k, *v) for k, v in differences(runs).items()]
        )
        if differences(runs)
        else paragraph("No option differs, or the runs have no configuration."),
        "Classes": _table("AP per class", names, per_class(runs)),
        "Where precision is lost": _table(
            "What AP50 would gain if all errors of one type of TIDE were corrected",
            names,
            lost_precision(runs),
        ),
        "Curves": plots(*(plot.svg() for plot in _plots(runs, names))),
    }
    header = paragraph(warning(runs)) if warning(runs) else ""
    return page(f"Comparison of {', '.join(names)}", header, sections)


def _table(caption: str, names: Sequence[str], rows: Sequence[Row]) -> str:
    cells: list[list[Cell]] = [[name, *_changes(values, digits)] for name, values, digits in rows]
    return table(caption, ("", *names), cells) if rows else ""


def _plots(runs: Sequence[RunResult], names: Sequence[str]) -> list[Plot]:
    steps = [i / 100 for i in range(101)]
    panels = {
        "AP over epochs": ("epoch", [series(run.history, "ap") for run in runs], (0, None)),
        "Loss over epochs": ("epoch", [series(run.history, "loss") for run in runs], (0, None)),
        "Precision over recall at IoU 0.5": ("recall", [(steps, run.precisions) for run in runs], (0, 1.02)),
        "F1 over score threshold": ("score threshold", [(steps, run.f1s) for run in runs], (0, 1.02)),
    }
    drawn = []
    for title, (x, values, limits) in panels.items():
        lines = {name: points for name, points in zip(names, values, strict=True) if len(points[1])}
        if lines:
            drawn.append(Plot(title, x, "", lines, limits=limits))
    return drawn
