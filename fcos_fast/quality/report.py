"""A checked dataset in words and as an HTML page."""

from __future__ import annotations

import base64
import html
import io
import shlex
import textwrap
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from string import Template

import numpy as np

import fcos_fast
from fcos_fast.data import DataError
from fcos_fast.data.images import read_pixels
from fcos_fast.text import printable
from fcos_fast.visualize import draw_boxes

from .check import Checked
from .finding import SEVERITIES, Example, Finding
from .image_faults import counted

NAMED = 3
"""Examples that the text names."""

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
            lines.append(f"{INDENT}fcos-fast train {shlex.join(finding.options)}")
    return "\n".join([*lines, "", summary(checked)])


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
    template = resources.files("fcos_fast.quality").joinpath("page.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        title=_escape(f"Check of {Path(checked.root).name or checked.root}"),
        summary=_escape(summary(checked)),
        splits=_escape(_splits(checked)),
        contents="".join(f'<li><a href="#{f.kind}">{_escape(f.what)}</a></li>' for f in checked.findings),
        findings="\n".join(_article(finding, max_pixels) for finding in checked.findings),
        version=_escape(fcos_fast.__version__),
    )


def _escape(text: str) -> str:
    return html.escape(printable(text))


def _article(finding: Finding, max_pixels: int) -> str:
    options = (
        f"<code>fcos-fast train {_escape(shlex.join(finding.options))}</code>" if finding.options else ""
    )
    shown, listed = [], []
    for example in finding.examples:
        images = list(_images(example, max_pixels))
        if images:
            pair = ' class="pair"' if len(images) > 1 else ""
            shown.append(
                f"<figure><div{pair}>{''.join(images)}</div><figcaption>{_escape(str(example))}</figcaption></figure>"
            )
        else:
            listed.append(f"<li>{_escape(str(example))}</li>")
    more = finding.more(len(finding.examples))
    return (
        f'<article class="{finding.severity}" id="{finding.kind}">'
        f'<h2><span class="severity {finding.severity}">{finding.severity}</span> {_escape(finding.what)}</h2>'
        f"<p>{_escape(finding.advice)}</p>{options}"
        + (f'<div class="images">{"".join(shown)}</div>' if shown else "")
        + (f"<ul>{''.join(listed)}</ul>" if listed else "")
        + (f'<p class="quiet">and {more:,} more</p>' if finding.examples and more > 0 else "")
        + "</article>"
    )


def _images(example: Example, max_pixels: int) -> Iterator[str]:
    """The images of an example as HTML; none that cannot be read."""
    empty = np.zeros((0, 4), np.float32)
    for path, boxes in ((example.image, example.boxes), (example.other, empty)):
        if path is None:
            continue
        try:
            pixels = read_pixels(path, max_pixels)
        except DataError:
            continue
        scale = min(1.0, THUMBNAIL / max(pixels.shape[:2]))
        drawn = draw_boxes(pixels, boxes, np.arange(len(boxes)), example.texts, scale=scale)
        data = io.BytesIO()
        drawn.save(data, "JPEG", quality=75)
        source = "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")
        yield f'<img src="{source}" width="{drawn.width}" height="{drawn.height}" alt="{_escape(path.name)}">'
