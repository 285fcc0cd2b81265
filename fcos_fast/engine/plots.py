"""Plots as inline SVG, for pages in light and dark mode."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, TypeAlias

from fcos_fast.text import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = ("#0072b2", "#d55e00", "#009e73", "#c05a96", "#9a7d0a")
"""Colors that color-blind readers tell apart, with a contrast of at least 3 to white and to black."""

STYLES = ("solid", "dashed", "dotted", "dashdot")
"""Line styles; with the colors they tell twenty lines apart."""

NAMED = 8
"""Maximum number of lines that the legend names; of more, the others are thin and gray."""

LONGEST = 24
"""Maximum number of characters of a name in the legend."""

Points: TypeAlias = tuple[Sequence[float], Sequence[float]]


@dataclass(frozen=True)
class Plot:
    """A plot of lines.

    Attributes:
        title: what it shows.
        x, y: names of the axes.
        lines: name of a line to its x and y values.
        bold: names of lines that are drawn bold, in the color of the text.
        limits: lowest and highest y; None is chosen by the values.
    """

    title: str
    x: str
    y: str
    lines: Mapping[str, Points]
    bold: tuple[str, ...] = ()
    limits: tuple[float | None, float | None] = (0, None)

    def draw(self, axes: Axes, color: str = "#000000") -> None:
        """Draw on matplotlib's axes; ``color`` is that of bold lines."""
        others = [name for name in self.lines if name not in self.bold]
        named = others[:NAMED]
        for name, (x, y) in self.lines.items():
            marker = "." if len(x) < 40 else None
            if name in self.bold:
                axes.plot(x, y, label=_label(name), color=color, linewidth=2.4, marker=marker, zorder=3)
            elif name in named:
                i = named.index(name)
                axes.plot(
                    *(x, y),
                    label=_label(name),
                    color=COLORS[i % len(COLORS)],
                    linestyle=STYLES[i // len(COLORS)],
                    linewidth=1.6,
                    marker=marker,
                )
            else:
                axes.plot(x, y, color="#808080", linewidth=0.5, zorder=1)
        axes.set(title=self.title, xlabel=self.x, ylabel=self.y, ylim=self.limits)
        axes.grid(alpha=0.3)
        if len(self.lines) > 1 or self.bold:
            axes.legend(framealpha=0, fontsize="small")

    def svg(self) -> str:
        """The plot as an SVG element, whose text and axes have the color of the page's text."""
        import matplotlib as mpl
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure

        # text stays text; a class name with dollar signs is no formula
        with (
            mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": self.title, "text.parse_math": False}),
            warnings.catch_warnings(),
        ):
            warnings.filterwarnings("ignore", "Glyph .* missing")  # the reader's browser has other fonts
            figure = Figure(figsize=(4.6, 3.4), layout="constrained")
            FigureCanvasSVG(figure)
            self.draw(figure.subplots())
            file = io.StringIO()
            figure.savefig(file, format="svg", transparent=True)
        return _inline(file.getvalue(), self.title)


def _inline(file: str, title: str) -> str:
    """The SVG element of a file of matplotlib, without what only a file needs."""
    box = re.search(r'viewBox="[^"]*"', file)
    body = re.sub(
        r"<metadata>.*?</metadata>|<style.*?</style>", "", file[file.index("<svg") :], flags=re.DOTALL
    )
    body = re.sub(r"<svg[^>]*>", "", body, count=1)
    body = re.sub(r'(?<=<g) id="[^"]*"| font-family:[^;"]*;', "", body)  # not unique in a page
    # tenths of a pixel suffice; hundreds of classes have a curve each
    body = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d)\d+", r"\1", path[0]), body)
    body = re.sub(r"\s*\n\s*", " ", body.replace("#000000", "currentColor"))
    return f'<svg role="img" aria-label="{escape(title)}" {box[0] if box else ""}>{body.strip()}'


def _label(name: str) -> str:
    """A name as a legend shows it; matplotlib skips those that start with an underscore."""
    text = printable(name)
    short = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"
    return f" {short}" if short.startswith("_") else short
