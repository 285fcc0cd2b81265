"""The curves of a training run, from its ``metrics.csv``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fcos_fast.engine.plots import Plot

if TYPE_CHECKING:
    from PIL import Image

SIZE_COLUMNS = ("ap_small", "ap_medium", "ap_large")
"""Columns of ``metrics.csv`` that begin like the AP of a class."""


def training_plots(rows: Sequence[Mapping[str, float]]) -> list[Plot]:
    """Losses, average precision and learning rate over the epochs of a ``metrics.csv``.

    The loss of the centerness has a plot of its own: its targets are not 0 or 1, so its minimum is not 0.
    """
    columns = dict.fromkeys(name for row in rows for name in row)
    losses = [name for name in columns if name.startswith("loss")]
    center = [
        name for name in losses if "ctrness" in name
    ]  # with its lowest possible value, if that was recorded
    classes = [name for name in columns if name.startswith("ap_") and name not in SIZE_COLUMNS]
    panels = {
        "Loss": ([n for n in losses if n not in center and not n.endswith("_floor")], ("loss",), (0, None)),
        "Centerness loss": (center, (), (None, None)),
        "Average precision": (["ap", "ap50", "ap75"], ("ap",), (0, 1)),
        "AP per class": (classes, (), (0, 1)),
        "Learning rate": (["lr"], (), (0, None)),
    }
    plotted = []
    for title, (names, bold, limits) in panels.items():
        lines = {name: series(rows, name) for name in names}
        lines = {_line_name(name): points for name, points in lines.items() if points[0]}
        if lines:
            plotted.append(Plot(title, "epoch", "", lines, bold, limits))
    return plotted


def _line_name(column: str) -> str:
    name = column.removeprefix("loss_").removeprefix("ap_")
    return f"{name.removesuffix('_floor')} at its lowest" if name.endswith("_floor") else name


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
