"""Self-contained HTML pages: tables, plots and images in one file, for any screen, in light and dark mode."""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from string import Template
from typing import TYPE_CHECKING, NamedTuple

from fcos_fast.text import printable

if TYPE_CHECKING:
    from PIL import Image


class Share(NamedTuple):
    """A cell of a table whose background is the darker, the higher its share of 1 is."""

    text: str
    share: float


class Bar(NamedTuple):
    """A cell of a table with a bar, as long as its share of 1."""

    share: float


Cell = str | int | float | Share | Bar
"""Numbers that are not whole get three digits; NaN becomes a dash."""


def html(text: str) -> str:
    """Text for HTML: escaped, and control characters made visible."""
    return escape(printable(text))


def page(title: str, header: str, sections: Mapping[str, str]) -> str:
    """A page: header, links to the sections, and these by their headings. Empty sections are skipped.

    Args:
        title: title of the page.
        header: HTML below the title.
        sections: heading to HTML.
    """
    sections = {heading: body for heading, body in sections.items() if body}
    links = "".join(f'<li><a href="#{_anchor(h)}">{html(h)}</a></li>' for h in sections)
    body = "\n".join(
        f'<section aria-labelledby="{_anchor(h)}"><h2 id="{_anchor(h)}">{html(h)}</h2>\n{body}</section>'
        for h, body in sections.items()
    )
    template = Template(resources.files("fcos_fast.engine").joinpath("page.html").read_text(encoding="utf-8"))
    nav = f'<nav aria-label="Sections"><ul>{links}</ul></nav>'
    return template.substitute(title=html(title), header=f"{header}\n{nav}", sections=body)


def paragraph(text: str) -> str:
    """A paragraph."""
    return f"<p>{html(text)}</p>"


def tiles(values: Mapping[str, str]) -> str:
    """Large values with their names."""
    items = "".join(f"<li><strong>{html(v)}</strong>{html(name)}</li>" for name, v in values.items())
    return f'<ul class="tiles">{items}</ul>'


def table(
    caption: str, header: Sequence[str], rows: Iterable[Sequence[Cell]], text_columns: Sequence[str] = ()
) -> str:
    """A table, which scrolls in itself if it is wider than the screen.

    Args:
        caption: what it shows.
        header: names of the columns.
        rows: cells; the first of a row names it.
        text_columns: columns that are aligned on the left, as is the first.
    """
    classes = [' class="text"' if name in text_columns else "" for name in header]
    head = "".join(
        f'<th scope="col"{kind}>{html(name)}</th>' for name, kind in zip(header, classes, strict=True)
    )
    body = "\n".join(
        f'<tr><th scope="row">{html(str(row[0]))}</th>'
        f"{''.join(_cell(cell, kind) for cell, kind in zip(row[1:], classes[1:], strict=True))}</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html(caption)}"><table>'
        f"<caption><span>{html(caption)}</span></caption>"
        f"<thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>"
    )


def plots(*svgs: str) -> str:
    """Plots side by side, or one below the other on a narrow screen."""
    return f'<div class="grid">{"".join(f"<figure>{svg}</figure>" for svg in svgs)}</div>'


def figure(image: Image.Image, alt: str) -> str:
    """An embedded image; ``alt`` says what it shows to those who cannot see it."""
    data = io.BytesIO()
    image.save(data, "WEBP", quality=75, method=4)
    source = "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode("ascii")
    return f'<img src="{source}" width="{image.width}" height="{image.height}" alt="{html(alt)}">'


def folded(summary: str, text: str) -> str:
    """Preformatted text that is shown on a click."""
    return f"<details><summary>{html(summary)}</summary><pre>{escape(text)}</pre></details>"


def number(value: float, digits: int = 3) -> str:
    """A number with some digits; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:.{digits}f}"


def _cell(cell: Cell, kind: str) -> str:
    if isinstance(cell, Share):
        return f'<td class="share" style="--share: {cell.share:.3f}">{html(cell.text)}</td>'
    if isinstance(cell, Bar):
        return f'<td class="bar-cell"><span class="bar" style="--share: {cell.share:.3f}"></span></td>'
    return f"<td{kind}>{html(number(cell) if isinstance(cell, float) else str(cell))}</td>"


def _anchor(heading: str) -> str:
    return re.sub(r"\W+", "-", heading.lower())
