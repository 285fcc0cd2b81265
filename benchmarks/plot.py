"""Plots the speedup of each row over the peer: ``python -m benchmarks.plot RESULTS.json PLOT.svg``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from benchmarks.report import number, work_of
from benchmarks.rows import COMPILED, FLOOR, OURS

COLORS = {"reference": "#b8b8b8", COMPILED: "#8da9c4", OURS: "#d1495b"}


def draw(results: list[dict], title: str, path: Path) -> None:
    """Bars start at the peer (1); a tick marks the floor; cases of an operator are grouped."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams |= {
        "svg.hashsalt": "fcos_fast",
        "font.size": 8,
    }  # reproducible files
    import matplotlib.pyplot as plt

    works = list(dict.fromkeys(map(work_of, results)))
    rows = [row for row in COLORS if any(result["row"] == row for result in results)]
    ratio = {(work_of(r), r["row"].split(":")[0]): r.get("times_faster_than_peer") for r in results}
    height = 0.8 / len(rows)
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.42 * len(works)), layout="constrained")
    for i, work in enumerate(works):
        for k, row in enumerate(rows):
            if value := ratio.get((work, row)):
                y = i + (k - (len(rows) - 1) / 2) * height
                axes.barh(y, value - 1, height, left=1, color=COLORS[row], label=row)
                if row == OURS:
                    axes.annotate(
                        f"{number(value)}×", (value, y), (3, 0), textcoords="offset points", va="center"
                    )
        if value := ratio.get((work, FLOOR)):
            axes.plot([value, value], [i - 0.45, i + 0.45], color="black", label="floor: memory copied once")
        if i and work[0] != works[i - 1][0]:
            axes.axhline(i - 0.5, color="#dddddd", linewidth=0.8)
    axes.axvline(1, color="#5f5f5f", linewidth=1.5, label="peer")
    axes.set(
        xscale="log",
        xlabel="times faster than the peer",
        ylim=(len(works) - 0.4, -0.6),
    )
    axes.set_yticks(range(len(works)), [f"{operator}  {case}" for operator, case, _ in works])
    axes.set_title(title, loc="left", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    labels = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(
        labels.values(), labels.keys(), loc="outside lower center", ncols=len(labels), frameon=False
    )
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def main() -> None:
    """Write one plot per device; the file name of the second contains the device."""
    source, path = map(Path, sys.argv[1:])
    content = json.loads(source.read_text())
    machine = content["machine"]
    names = {
        "cpu": f"{machine['cpu']}, {machine['threads']} threads",
        "cuda": (machine["gpu"] or {}).get("name"),
    }
    for device in dict.fromkeys(result["device"] for result in content["results"]):
        results = [result for result in content["results"] if result["device"] == device]
        target = (
            path if device == content["results"][0]["device"] else path.with_stem(f"{path.stem}-{device}")
        )
        draw(results, f"{names[device]}; torch {machine['torch']}", target)
        print(f"written: {target}", file=sys.stderr)


if __name__ == "__main__":
    main()
