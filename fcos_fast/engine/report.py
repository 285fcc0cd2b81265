"""The report of a run or an evaluation: one HTML page with everything, and the same numbers as JSON."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from fcos_fast.data import DetectionDataset
from fcos_fast.engine.analysis import BADLY_PLACED, Analysis, Example, Group, Outcome, analyze
from fcos_fast.engine.files import save_image, write_json, write_text
from fcos_fast.engine.matching import pairwise_iou
from fcos_fast.engine.page import (
    Bar,
    Share,
    figure,
    folded,
    html,
    number,
    page,
    paragraph,
    plots,
    table,
    tiles,
)
from fcos_fast.engine.plots import NAMED, Plot
from fcos_fast.engine.precision_recall import RECALLS
from fcos_fast.engine.run_folder import read_metrics
from fcos_fast.engine.tide import ERRORS
from fcos_fast.engine.training_curves import plot_curves, training_plots
from fcos_fast.visualize import FOUND, Mark, detection_marks, draw_marks, labeled, sheet, target_marks

if TYPE_CHECKING:
    from fcos_fast.engine.average_precision import AveragePrecision

FIGURE_WIDTH = 480
"""Width in pixels of the images in the page, and largest side of the crops."""

CONFUSED = 15
"""Maximum number of classes in the page's confusion matrix; with more, the command with a threshold for each class is
folded away."""

LEGEND = """<ul class="legend">
<li><span class="correct"></span>found, correct (solid)</li>
<li><span class="missed"></span>missed object (dashed)</li>
<li><span class="false"></span>false positive (dotted)</li>
%s</ul>"""

LABELED = '<li><span class="labeled"></span>object of a badly placed detection (white)</li>\n'


def write_report(
    folder: str | Path,
    title: str,
    dataset: DetectionDataset,
    detections: Sequence[dict[str, Tensor]],
    result: AveragePrecision,
    texts: Mapping[str, str],
    num_images: int = 8,
    about: str = "",
    parameters: int | None = None,
) -> Path:
    """Write ``report.html``, ``analysis.json``, ``sheet.png`` and, if there is a ``metrics.csv``, ``curves.png``.

    Args:
        folder: folder of the run.
        title: title of the page.
        dataset: evaluated dataset.
        detections: detections of each of its images.
        result: average precision of the detections.
        texts: heading to text of further sections of the page, folded away.
        num_images: number of images on the sheet, from the whole dataset.
        about: the model and what it runs on, in words.
        parameters: number of its parameters, for :mod:`fcos_fast.engine.compare`.

    Returns:
        The page. It has all images embedded.
    """
    folder = Path(folder)
    analysis, outcome = analyze(dataset, detections, result)
    facts = {"title": title, "about": about, "parameters": parameters}
    write_json(folder / "analysis.json", {**facts, **analysis.to_dict()})
    rows = np.linspace(0, len(dataset) - 1, min(num_images, len(dataset))).round().astype(int).tolist()
    drawn = [(dataset[i][0], *_shown(outcome, i)) for i in rows]
    images, targets, kept = zip(*drawn, strict=True)
    save_image(
        sheet(images, targets, kept, dataset.categories.names, score_threshold=0), folder / "sheet.png"
    )
    metrics = read_metrics(folder / "metrics.csv") if (folder / "metrics.csv").is_file() else []
    if metrics:
        save_image(plot_curves(metrics), folder / "curves.png")
    sections = {
        "Classes": _classes(analysis),
        "Where precision is lost": _errors(analysis),
        "Images": _images(dataset, rows, images, targets, kept),
        "Worst images": _worst(analysis, dataset, outcome),
        "Curves": _curves(analysis),
        "Confusion matrix": _confusion(analysis),
        "Sizes and shapes": _sizes(analysis),
        "Training": _training(metrics),
        "Data": paragraph(str(dataset.report)) if dataset.report else "",
        **{heading: folded(f"Show {heading.lower()}", text) for heading, text in texts.items()},
    }
    write_text(folder / "report.html", page(title, _summary(analysis, about), sections))
    return folder / "report.html"


def _summary(analysis: Analysis, about: str) -> str:
    result, overall = analysis.average_precision, analysis.overall
    speed = result.images_per_second
    return (f'<p class="quiet">{html(about)}</p>' if about else "") + tiles(
        {
            "AP, mean of IoU 0.50 to 0.95": number(result.ap),
            "AP50": number(result.ap50),
            "AP75": number(result.ap75),
            "recall, at most 100 detections": number(result.ar100),
            "best F1 at IoU 0.5": number(overall.f1),
            "images": str(analysis.images),
            **({"images/s, reading included": number(speed, 1)} if speed == speed else {}),
        }
    )


def _classes(analysis: Analysis) -> str:
    result = analysis.average_precision
    rows = [("all classes", result.ap, result.ap50, analysis.overall)]
    rows += [
        (name, result.per_class[name], result.per_class50[name], curve)
        for name, curve in analysis.per_class.items()
    ]
    command = f"fcos-fast detect --score_threshold {shlex.quote(score_option(analysis.thresholds))} ..."
    what = "To detect with these thresholds"
    return table(
        "Precision, recall and F1 at IoU 0.5 and the score threshold with the highest F1",
        ("class", "AP", "AP50", "threshold", "precision", "recall", "F1", "objects"),
        ((name, ap, ap50, c.threshold, c.precision, c.recall, c.f1, c.objects) for name, ap, ap50, c in rows),
    ) + (
        folded(what, command)
        if len(analysis.classes) > CONFUSED
        else f"{paragraph(f'{what}:')}<pre>{html(command)}</pre>"
    )


def score_option(thresholds: Mapping[str, float]) -> str:
    """Class name to threshold as ``fcos-fast detect --score_threshold`` reads it."""
    return json.dumps(dict(thresholds), ensure_ascii=True)


def _errors(analysis: Analysis) -> str:
    most = max([*analysis.lost_precision.values(), 1e-9])
    rows = [
        (name, lost, Bar(lost / most), analysis.errors[name], ERRORS[name])
        for name, lost in analysis.lost_precision.items()
    ]
    return table(
        "What AP50 would gain if all errors of one type were corrected, at any score; and the number of such errors at "
        "the best thresholds",
        ("error", "AP50 lost", "", "number", "meaning"),
        rows,
        text_columns=("meaning",),
    ) + paragraph(
        "The types are those of TIDE (Bolya et al. 2020). A detection is well placed from IoU 0.5 on, and near an "
        "object from 0.1 on. The gains do not add up to what AP50 lacks."
    )


def _shown(outcome: Outcome, image: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The objects of an image that are not ignored, and its detections at the best thresholds."""
    m = outcome.matching
    objects = np.flatnonzero((m.objects.images == image) & ~m.ignore)
    found = np.flatnonzero((m.found.images == image) & outcome.shown)
    target = {
        "boxes": m.objects.boxes[objects],
        "labels": m.objects.labels[objects],
        "found": outcome.found[objects],
    }
    detection = {
        "boxes": m.found.boxes[found],
        "labels": m.found.labels[found],
        "scores": m.scores[found],
        "correct": outcome.correct[found],
    }
    return target, detection


def _images(
    dataset: DetectionDataset,
    rows: Sequence[int],
    images: Sequence[Tensor],
    targets: Sequence[dict[str, np.ndarray]],
    detections: Sequence[dict[str, np.ndarray]],
) -> str:
    names = dataset.categories.names
    figures = []
    for i, image, target, detection in zip(rows, images, targets, detections, strict=True):
        counts = f"{target['found'].sum()} of {len(target['found'])} objects found"
        number_wrong = int((~detection["correct"]).sum())
        wrong = f"{number_wrong} false positive{'' if number_wrong == 1 else 's'}"
        name = dataset.records[i].name
        scale = min(FIGURE_WIDTH / image.shape[-1], 2 * FIGURE_WIDTH / image.shape[-2])
        left = draw_marks(image, target_marks(target, names), scale)
        right = draw_marks(image, detection_marks(detection, names), scale)
        figures.append(
            f'<figure class="pair">{figure(left, f"{name}, ground truth: {counts}")}'
            f"{figure(right, f'{name}, detections: {wrong}')}"
            f"<figcaption>{html(f'{name}: {counts}, {wrong}')}</figcaption></figure>"
        )
    text = paragraph("Ground truth and detections at the best thresholds.")
    return text + LEGEND % "" + "".join(figures)


def _worst(analysis: Analysis, dataset: DetectionDataset, outcome: Outcome) -> str:
    lists = {
        "Most missed objects": analysis.missed,
        "False positives with the highest scores": analysis.false_positives,
        "Badly placed": analysis.badly_placed,
    }
    if not any(lists.values()):
        return paragraph("No object is missed, and no detection is wrong.")
    parts = [LEGEND % LABELED]
    for heading, examples in lists.items():
        if examples:
            figures = "".join(_crop(example, dataset, outcome) for example in examples)
            parts.append(f'<h3>{heading}</h3><div class="grid">{figures}</div>')
    return "".join(parts)


def _crop(example: Example, dataset: DetectionDataset, outcome: Outcome) -> str:
    """The surroundings of an example: its boxes with labels, the others without."""
    image = dataset[example.image][0]
    names, (target, detection) = dataset.categories.names, _shown(outcome, example.image)
    x1, y1, x2, y2 = window(example.box, (image.shape[-1], image.shape[-2]))
    objects = target_marks(target, names)
    if example.shows_object:
        objects = [labeled(mark.box, mark.text) if _is_about(example, mark) else mark for mark in objects]
    marks = [mark for mark in objects if mark.color != FOUND] + detection_marks(detection, names)
    marks = [
        mark._replace(
            box=(np.asarray(mark.box) - (x1, y1, x1, y1)).tolist(),
            text=mark.text if _is_about(example, mark) else "",
        )
        for mark in marks
        if mark.box[0] < x2 and mark.box[2] > x1 and mark.box[1] < y2 and mark.box[3] > y1
    ]
    drawn = draw_marks(image[:, y1:y2, x1:x2], marks, FIGURE_WIDTH / max(x2 - x1, y2 - y1))
    text = f"{example.name}: {example.text}"
    return f"<figure>{figure(drawn, text)}<figcaption>{html(text)}</figcaption></figure>"


def _is_about(example: Example, mark: Mark) -> bool:
    """Whether the box of a mark is one of those that the example is about, rather than a neighbor."""
    return bool(pairwise_iou(np.array([mark.box]), np.array([example.box]))[0, 0] >= BADLY_PLACED[0])


def window(box: Sequence[float], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """A part of an image of ``size`` (width, height) around a box, with surroundings; x1, y1, x2, y2 in pixels."""
    center = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    half = max(48.0, 1.25 * max(box[2] - box[0], box[3] - box[1]))
    low, high = [], []
    for middle, side in zip(center, size, strict=True):
        start = max(0.0, min(middle - half, side - 2 * half))
        low.append(int(start))
        high.append(max(int(start) + 1, min(side, round(start + 2 * half))))
    return low[0], low[1], high[0], high[1]


def _curves(analysis: Analysis) -> str:
    per_class = {name: curve for name, curve in analysis.per_class.items() if curve.objects}
    weakest = sorted(per_class, key=lambda name: per_class[name].ap50)
    if not weakest:
        return ""
    named = {"all classes": analysis.overall, **{name: per_class[name] for name in weakest}}
    scores = RECALLS.tolist()  # the same steps
    charts = (
        Plot(
            "Precision over recall at IoU 0.5",
            *("recall", "precision"),
            {name: (RECALLS.tolist(), curve.precisions) for name, curve in named.items()},
            bold=("all classes",),
            limits=(0, 1.02),
        ),
        Plot(
            "F1 over score threshold",
            *("score threshold", "F1"),
            {name: (scores, curve.f1s) for name, curve in named.items()},
            bold=("all classes",),
            limits=(0, 1.02),
        ),
    )
    text = (
        f"All classes is the mean. Named are the {NAMED} classes with the lowest AP50."
        if len(weakest) > NAMED
        else ""
    )
    return plots(*(chart.svg() for chart in charts)) + (paragraph(text) if text else "")


def _confusion(analysis: Analysis) -> str:
    matrix = np.array(analysis.confusion)
    errors = (matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal())[:-1]
    shown = np.sort(np.argsort(-errors, kind="stable")[:CONFUSED])
    some = (
        ""
        if len(shown) == len(errors)
        else f" The {len(shown)} of {len(errors)} classes with the most errors."
    )
    rows = np.append(shown, len(errors))
    names = [*analysis.classes, "background"]
    body = []
    for i in rows.tolist():
        total = max(1, int(matrix[i].sum()))
        body.append([names[i], *(Share(str(n) if n else "·", n / total) for n in matrix[i, rows].tolist())])
    return table(
        f"Objects by class (rows) and class of their detection (columns) at IoU 0.5 and the best thresholds.{some}",
        ["object \\ detection", *(names[i] for i in rows.tolist())],
        body,
    ) + paragraph("Column background: missed objects. Row background: false positives.")


def _sizes(analysis: Analysis) -> str:
    result = analysis.average_precision
    coco = table(
        "COCO's metrics by area",
        ("objects", "AP", "average recall"),
        (
            ("small, below 32² pixels", result.ap_small, result.ar_small),
            ("medium", result.ap_medium, result.ar_medium),
            ("large, above 96² pixels", result.ap_large, result.ar_large),
        ),
    )
    return (
        coco
        + _groups("Objects by square root of the area, in pixels", "size", analysis.sizes)
        + _groups("Objects by width over height", "width / height", analysis.aspects)
    )


def _groups(caption: str, what: str, groups: Sequence[Group]) -> str:
    most = max([group.objects for group in groups], default=1)
    return table(
        f"{caption}; recall at IoU 0.5 and the best thresholds",
        (what, "objects", "", "recall"),
        (
            (_range(g), g.objects, Bar(g.objects / most), g.found / g.objects if g.objects else float("nan"))
            for g in groups
        ),
    )


def _range(group: Group) -> str:
    if group.high == float("inf"):
        return f"from {group.low:.3g}"
    return f"below {group.high:.3g}" if group.low == 0 else f"{group.low:.3g} to {group.high:.3g}"


def _training(rows: Sequence[Mapping[str, float]]) -> str:
    panels = training_plots(rows)
    if not panels:
        return ""
    note = ""
    if any(panel.title == "Centerness loss" for panel in panels):
        note = paragraph(
            "The centerness loss does not approach 0: its targets lie between 0 and 1, and so even perfect predictions "
            "have the entropy of the targets as their loss."
        )
    return plots(*(panel.svg() for panel in panels)) + note
