"""The report of a run: curves, and an HTML page with everything."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from fcos_fast.data import DetectionDataset
from fcos_fast.engine.files import save_image, write_text
from fcos_fast.engine.run_folder import read_metrics
from fcos_fast.text import printable
from fcos_fast.visualize import sheet

if TYPE_CHECKING:
    from PIL import Image

    from fcos_fast.engine.average_precision import AveragePrecision


def plot_curves(rows: Sequence[dict[str, float]]) -> Image.Image:
    """Plot losses, average precision and learning rate over the epochs of a ``metrics.csv``."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # draws without a display
    from matplotlib.figure import Figure
    from PIL import Image

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    panels = {
        "loss": dict.fromkeys(name for row in rows for name in row if name.startswith("loss")),
        "average precision": ("ap", "ap50", "ap75"),
        "learning rate": ("lr",),
    }
    for axis, (title, columns) in zip(figure.subplots(1, 3), panels.items(), strict=True):
        for column in columns:
            points = [(row["epoch"], row[column]) for row in rows if column in row]
            if points:
                axis.plot(
                    *zip(*points, strict=True), label=column.removeprefix("loss_"), marker=".", markersize=3
                )
        axis.set(title=title, xlabel="epoch", ylim=(0, 1) if title == "average precision" else (0, None))
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


_PAGE = Template(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>$title</title>
<style>
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; color: #222 }
img { max-width: 100%; border: 1px solid #ddd }
table { border-collapse: collapse } td, th { padding: .2em .9em; border-bottom: 1px solid #ddd; text-align: right }
td:first-child, th:first-child { text-align: left }
pre { background: #f6f6f6; padding: 1em; overflow-x: auto }
</style></head><body>
<h1>$title</h1>
$sections
</body></html>
"""
)


def write_report(
    folder: str | Path,
    title: str,
    dataset: DetectionDataset,
    detections: Sequence[dict[str, Tensor]],
    result: AveragePrecision,
    texts: dict[str, str],
    num_images: int = 8,
) -> Path:
    """Write ``sheet.png``, ``report.html`` and, if there is a ``metrics.csv``, ``curves.png`` into ``folder``.

    Args:
        folder: folder of the run.
        title: title of the page.
        dataset: evaluated dataset.
        detections: detections of each of its images.
        result: average precision of the detections.
        texts: heading to text of further sections of the page.
        num_images: number of images on the sheet.

    Returns:
        The page. It has all images embedded.
    """
    folder = Path(folder)
    count = min(num_images, len(dataset))
    images, targets = zip(*(dataset[i] for i in range(count)), strict=True)
    figures = {"Labels and detections": sheet(images, targets, detections[:count], dataset.categories.names)}
    save_image(figures["Labels and detections"], folder / "sheet.png")
    if (folder / "metrics.csv").is_file():
        figures["Training"] = plot_curves(read_metrics(folder / "metrics.csv"))
        save_image(figures["Training"], folder / "curves.png")

    sections = [f"<h2>Average precision</h2>{_table(result)}"]
    for heading, figure in figures.items():
        sections.append(f"<h2>{heading}</h2><img alt='{heading}' src='{_embedded(figure)}'>")
    for heading, text in texts.items():
        sections.append(f"<h2>{html.escape(heading)}</h2><pre>{html.escape(text)}</pre>")
    page = _PAGE.substitute(title=html.escape(printable(title)), sections="\n".join(sections))
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _table(result: AveragePrecision) -> str:
    rows = [("all classes", result.ap, result.ap50)]
    rows += [(name, ap, result.per_class50[name]) for name, ap in result.per_class.items()]
    body = "".join(
        f"<tr><td>{html.escape(printable(name))}</td><td>{ap:.3f}</td><td>{ap50:.3f}</td></tr>"
        for name, ap, ap50 in rows
    )
    return (
        f"<table><tr><th></th><th>AP</th><th>AP50</th></tr>{body}</table>"
        f"<p>AP75 {result.ap75:.3f}; AP of small, medium and large objects {result.ap_small:.3f}, "
        f"{result.ap_medium:.3f}, {result.ap_large:.3f}; average recall {result.ar100:.3f}</p>"
    )


def _embedded(image: Image.Image) -> str:
    data = io.BytesIO()
    image.save(data, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode("ascii")
