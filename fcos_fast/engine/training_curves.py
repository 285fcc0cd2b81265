"""The curves of a training run, from its ``metrics.csv``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fcos_fast.engine.plots import Plot

if TYPE_CHECKING:
    from PIL import Image

SIZE_COLUMNS = ("ap_small", "ap_medium", "ap_large")
"""Columns of ``metrics.csv`` that begin like the AP of a class; that of a class ``small`` is ``ap_small (class)``."""


def training_plots(rows: Sequence[Mapping[str, float]]) -> list[Plot]:
    """Losses, average precision and learning rate over the epochs of a ``metrics.csv``.

    The loss of the centerness has a plot of its own: its targets are not 0 or 1, so its minimum is not 0.
    """
    columns = dict.fromkeys(name for row in rows for name in row)
    losses = [name for name in columns if name.startswith("loss")]
    center = [name for name in losses if "ctrness" in name]  # and its lowest possible value, if recorded
    plain = [name for name in losses if name not in center and not name.endswith("_floor")]
    panels = {
        "Loss": (_loss_names(plain), ("loss",), (0, None)),
        "Centerness loss": (_loss_names(center), (), (None, None)),
        "Average precision": ({name: name for name in ("ap", "ap50", "ap75")}, ("ap",), (0, 1)),
        "AP per class": (class_columns(columns), (), (0, 1)),
        "Learning rate": ({"lr": "lr"}, (), (0, None)),
    }
    plotted = []
    for title, (names, bold, limits) in panels.items():
        lines = {name: series(rows, column) for column, name in names.items()}
        lines = {name: points for name, points in lines.items() if points[0]}
        if lines:
            plotted.append(Plot(title, "epoch", "", lines, bold, limits))
    return plotted


def class_columns(columns: Iterable[str]) -> dict[str, str]:
    """Of the columns of a ``metrics.csv``, those of the AP of a class: column to class name."""
    by_size = {f"{column} (class)": column for column in SIZE_COLUMNS}
    return {
        column: by_size.get(column, column).removeprefix("ap_")
        for column in columns
        if column.startswith("ap_") and column not in SIZE_COLUMNS
    }


def _loss_names(columns: Iterable[str]) -> dict[str, str]:
    """Column to the name of its line."""
    names = {column: column.removeprefix("loss_") for column in columns}
    return {
        column: f"{name.removesuffix('_floor')} at its lowest" if name.endswith("_floor") else name
        for column, name in names.items()
    }


def series(rows: Sequence[Mapping[str, float]], column: str) -> tuple[list[float], list[float]]:
    """The epochs that have a value in a column, and these values."""
    points = [(row["epoch"], row[column]) for row in rows if column in row]
    return [x for x, _ in points], [y for _, y in points]


def plot_curves(rows: Sequence[Mapping[str, float]]) -> Image.Image:
    """:func:`training_plots` side by side in an image."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # draws without a display
    from matplotlib.figure import Figure
    from PIL import Image

    panels = training_plots(rows)
    drawn = Figure(figsize=(4 * len(panels), 3.6), layout="constrained")
    canvas = FigureCanvasAgg(drawn)
    with mpl.rc_context({"text.parse_math": False}):
        for axes, panel in zip(drawn.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            panel.draw(axes)
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
