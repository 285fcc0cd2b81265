"""A checked dataset in words and as an HTML page."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

from fcos_fast.data import DataError
from fcos_fast.data.images import read_pixels
from fcos_fast.engine.page import figure, folded, html, page, paragraph
from fcos_fast.text import printable
from fcos_fast.visualize import Mark, class_color, draw_marks

from .check import Checked
from .finding import SEVERITIES, Example, Finding
from .image_faults import counted

NAMED = 3
"""Examples that the text names."""

SHOWN = 12
"""Examples of a finding whose images the page shows; it lists the others."""

WHITE = (255, 255, 255)

INDENT = " " * 9

THUMBNAIL = 360
"""Longest side of an image on the page, in pixels."""


def to_text(checked: Checked) -> str:
    """The findings in words, most serious first."""
    lines = [_splits(checked)]
    for finding in checked.findings:
        named = [printable(str(example)) for example in finding.examples[:NAMED]]
        more = finding.more(NAMED)
        lines += ["", *_indented(printable(finding.what), f"{finding.severity.upper():8} ")]
        lines += [f"{INDENT}  {text}" for text in named]
        if named and more > 0:
            lines.append(f"{INDENT}  and {more:,} more")
        lines += _indented(printable(finding.advice))
        if finding.options:
            lines.append(INDENT + _command(finding))
    return "\n".join([*lines, "", summary(checked)])


def _command(finding: Finding) -> str:
    return f"fcos-fast train {shlex.join(finding.options)}"


def _indented(text: str, first: str = INDENT) -> list[str]:
    return textwrap.wrap(text, 100, initial_indent=first, subsequent_indent=INDENT)


def summary(checked: Checked) -> str:
    """The number of findings by severity."""
    if not checked.findings:
        return "Nothing found."
    counts = [(checked.count(severity), severity) for severity in SEVERITIES]
    return ", ".join(counted(number, severity) for number, severity in counts if number) + "."


def _splits(checked: Checked) -> str:
    return "; ".join(
        f"{printable(split.name)}: {counted(len(split), 'image')}, {counted(len(split.boxes), 'box')}"
        for split in checked.splits
    )


def to_html(checked: Checked, max_pixels: int) -> str:
    """One self-contained page with the images of the findings, their boxes drawn.

    Args:
        checked: the findings.
        max_pixels: larger images are not shown.
    """
    header = paragraph(summary(checked)) + paragraph(_splits(checked))
    sections = {f"{f.severity.capitalize()}: {f.what}": _section(f, max_pixels) for f in checked.findings}
    return page(f"Check of {Path(checked.root).name or checked.root}", header, sections)


def _section(finding: Finding, max_pixels: int) -> str:
    parts = [paragraph(finding.advice)]
    if finding.options:
        parts.append(f"<pre>{html(_command(finding))}</pre>")
    figures, lines = [], []
    for number, example in enumerate(finding.examples):
        images = list(_images(example, max_pixels)) if number < SHOWN else []
        if images:
            kind = ' class="pair"' if len(images) > 1 else ""
            caption = f"<figcaption>{html(str(example))}</figcaption>"
            figures.append(f"<figure{kind}>{''.join(images)}{caption}</figure>")
        else:
            lines.append(printable(str(example)))
    more = finding.more(len(finding.examples))
    if lines and more:
        lines.append(f"and {more:,} more")
    if figures:
        parts.append(f'<div class="grid">{"".join(figures)}</div>')
    if len(lines) > SHOWN:
        parts.append(folded(f"{len(lines):,} more", "\n".join(lines)))
    elif lines:
        parts.append(f"<ul>{''.join(f'<li>{html(line)}</li>' for line in lines)}</ul>")
    return "\n".join(parts)


def _images(example: Example, max_pixels: int) -> Iterator[str]:
    """The images of an example as HTML; none that cannot be read."""
    marks = [Mark(box, "", WHITE) for box in example.labels.tolist()]
    marks += [
        Mark(box, text, class_color(i))
        for i, (box, text) in enumerate(zip(example.boxes.tolist(), example.texts, strict=True))
    ]
    for path, drawn in ((example.image, marks), (example.other, [])):
        if path is None:
            continue
        try:
            pixels = read_pixels(path, max_pixels)
        except DataError:
            continue
        scale = min(1.0, THUMBNAIL / max(pixels.shape[:2]))
        yield figure(draw_marks(pixels, drawn, scale), path.name)
