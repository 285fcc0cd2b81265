"""Writes results as JSON and markdown: ``python -m benchmarks.report [OPTIONS] RESULTS.json ...`` prints tables.

``python -m benchmarks.report --update FILE.md ...`` rewrites the tables in markdown files, between the lines
``<!-- table: python -m benchmarks.report RESULTS.json -->`` and ``<!-- end of table -->``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import statistics
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.rows import FLOOR, OURS

if TYPE_CHECKING:  # which imports torch
    from benchmarks.case import Case

ROOT = Path(__file__).parent.parent
MARKER = re.compile(
    r"(?P<start><!-- table: python -m benchmarks\.report (?P<arguments>.+?) -->\n).*?(?P<end><!-- end of table -->)",
    re.DOTALL,
)

Result = dict[str, Any]


def result_of(case: Case, device: str, row: str, outcome: dict[str, list[float] | Exception]) -> Result:
    """The JSON of a row: its times, or an ``error``."""
    result: Result = {
        "operator": case.operator,
        "case": case.title,
        "device": device,
        "peer": case.peer,
        "row": row,
    }
    samples, of_peer = outcome[row], outcome.get(case.peer)
    if isinstance(samples, Exception):
        return result | {"error": f"{type(samples).__name__}: {samples}".splitlines()[0]}
    p20, p50, p80 = (percentile(samples, q) for q in (0.2, 0.5, 0.8))
    result |= {"p20_ms": p20, "p50_ms": p50, "p80_ms": p80, "samples": len(samples)}
    if isinstance(of_peer, list):
        result["times_faster_than_peer"] = statistics.median(of_peer) / p50
    return result


def percentile(samples: list[float], q: float) -> float:
    """Linearly interpolated."""
    ordered = sorted(samples)
    below, fraction = divmod(q * (len(ordered) - 1), 1)
    above = min(int(below) + 1, len(ordered) - 1)
    return ordered[int(below)] * (1 - fraction) + ordered[above] * fraction


def with_prediction(result: Result, copy_gb_per_s: float) -> Result:
    """Add the predicted time: the minimum number of bytes moved, over the bandwidth of a copy in the same run."""
    if not result.get("bytes") or "p50_ms" not in result:
        return result
    predicted = result["bytes"] / (copy_gb_per_s * 1e6)
    return result | {
        "gb_per_s": result["bytes"] / (result["p50_ms"] * 1e6),
        "predicted_ms": predicted,
        "share_of_prediction": predicted / result["p50_ms"],
    }


def work_of(result: Result) -> tuple[str, str, str]:
    """Operator, case and device: rows that share them can be compared."""
    return result["operator"], result["case"], result["device"]


def number(value: float | None) -> str:
    """Three significant digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def percentiles(result: Result, per_unit: float = 1) -> str:
    """``p20 / p50 / p80``, in units of so many milliseconds."""
    times = [result.get(f"p{q}_ms") for q in (20, 50, 80)]
    return " / ".join(number(time and time / per_unit) for time in times)


Columns = dict[str, Callable[[Result], str]]

CPU_COLUMNS: Columns = {
    "p20 ms": lambda r: number(r.get("p20_ms")),
    "p50 ms": lambda r: number(r.get("p50_ms")),
    "p80 ms": lambda r: number(r.get("p80_ms")),
    "peer / row": lambda r: number(r.get("times_faster_than_peer")),
}
GPU_COLUMNS: Columns = {
    "ms (p20 / p50 / p80)": percentiles,
    "host ms": lambda r: number(r.get("host_ms")),
    "MB moved at least": lambda r: number(r["bytes"] / 1e6) if r.get("bytes") else "",
    "GB/s": lambda r: number(r.get("gb_per_s")),
    "predicted ms": lambda r: number(r.get("predicted_ms")),
    "predicted / measured": lambda r: number(r.get("share_of_prediction")),
    "peer / row": lambda r: number(r.get("times_faster_than_peer")),
}


def table(head: Iterable[str], rows: Iterable[Iterable[str]], left: int) -> str:
    """A markdown table whose first ``left`` columns are left-aligned."""
    head = list(head)
    separator = f"|{'---|' * left}{'--:|' * (len(head) - left)}"
    first, *others = (f"| {' | '.join(line)} |" for line in (head, *rows))
    return "\n".join([first, separator, *others])


def all_rows(results: list[Result], columns: Columns = CPU_COLUMNS) -> str:
    """Every row as a line of a table; the ratio of the peer is 1. Failed rows show their error."""
    lines = []
    for work, rows in groupby(results, work_of):
        for i, result in enumerate(rows):
            cells = [column(result) for column in columns.values()]
            if "error" in result:
                cells[0] = f"failed: {result['error']}".replace("|", "/")
            row = f"**{result['row']}**" if result["row"].startswith(OURS) else result["row"]
            title = f"`{work[0]}` {work[1]}" if i == 0 else ""
            lines.append([title, work[2] if i == 0 else "", row, *cells])
    return table(["work", "device", "row", *columns], lines, left=3)


def comparisons(results: list[Result]) -> list[dict[str, Result]]:
    """For each case, the results of ``peer``, ``ours`` and (optionally) ``floor``."""
    found = []
    for _, rows in groupby(results, work_of):
        by_row = {result["row"]: result for result in rows if "error" not in result}
        peer = by_row.get(next(iter(by_row.values()), {}).get("peer"))
        if peer and OURS in by_row:
            floors = [result for name, result in by_row.items() if name.startswith(FLOOR)]
            found.append({"peer": peer, "ours": by_row[OURS], **({"floor": floors[0]} if floors else {})})
    return found


def ratio(comparison: dict[str, Result]) -> float:
    """How many times faster than its peer ours is."""
    return comparison["ours"]["times_faster_than_peer"]


def summary(found: list[dict[str, Result]]) -> list[dict[str, Result]]:
    """The best, the median and the worst operator, each represented by its case with the median ratio."""
    operators: dict[str, list[dict[str, Result]]] = {}
    for comparison in found:
        operators.setdefault(comparison["ours"]["operator"], []).append(comparison)
    typical = sorted(
        (sorted(cases, key=ratio)[(len(cases) - 1) // 2] for cases in operators.values()), key=ratio
    )
    places = {len(typical) - 1: None, (len(typical) - 1) // 2: None, 0: None}  # distinct, in this order
    return [typical[place] for place in places]


def comparison_table(found: list[dict[str, Result]], with_floor: bool = False) -> str:
    """One line per case: peer, ours, their ratio and optionally the floor; in seconds if all are long."""
    unit, per_unit = ("s", 1000) if all(c["ours"]["p50_ms"] >= 1000 for c in found) else ("ms", 1)
    floors = {c["floor"]["row"].removeprefix(f"{FLOOR}: ") for c in found if "floor" in c}
    times = f"p20 / p50 / p80 {unit}"
    head = ["work", "peer", f"peer, {times}", f"{OURS}, {times}", "times faster"]
    if with_floor:
        head.append(f"{floors.pop() if len(floors) == 1 else FLOOR}, p50 {unit}")
    lines = []
    for c in found:
        ours, floor = c["ours"], c.get("floor", {}).get("p50_ms")
        line = [f"`{ours['operator']}` {ours['case']}", ours["peer"]]
        line += [percentiles(c["peer"], per_unit), percentiles(ours, per_unit), number(ratio(c))]
        lines.append(line + [number(floor and floor / per_unit)] * with_floor)
    return table(head, lines, left=2)


def size_table(sizes: list[Result]) -> str:
    """The detectors of ``--size``, one per line. Columns that were not measured for any of them are omitted."""
    columns: Columns = {
        "largest input": lambda r: "x".join(map(str, r["image_size"])),
        "M parameters": lambda r: f"{r['parameters'] / 1e6:.1f}",
        "G multiply-adds": lambda r: number(r["multiply_adds"] / 1e9),
        "ms per image (p20 / p50 / p80)": percentiles,
    }
    measured = [name for name in columns if name.startswith("ms") <= any("p50_ms" in r for r in sizes)]
    lines = (
        [f"`{r['size']}`", f"`{r['backbone']}`", *(columns[name](r) for name in measured)] for r in sizes
    )
    return table(["`--size`", "backbone", *measured], lines, left=2)


def curve_table(curves: dict[str, list[Result]], target: float = 0.56) -> str:
    """One line per training: its best AP, and the minutes until it first reached ``target``."""
    lines = []
    for name, points in curves.items():
        best = max(points, key=lambda point: point["ap"])
        reached = next((f"{p['seconds'] / 60:.1f}" for p in points if p["ap"] >= target), "")
        minutes = points[-1]["seconds"] / 60
        lines.append([name, f"{best['ap']:.3f}", f"{best['ap50']:.3f}", f"{minutes:.1f}", reached])
    return table(["training", "best AP", "AP50", "minutes in all", f"minutes to AP {target}"], lines, left=1)


def describe(machine: dict[str, Any]) -> str:
    """Device, versions and commit."""
    device = machine["gpu"]["name"] if machine["gpu"] else f"{machine['cpu']} ({machine['simd']})"
    commits = ", ".join(name[:12] for name in machine["commit"].split(", "))
    return f"{device}, {machine['threads']} threads, torch {machine['torch']}, commit {commits}"


def generate(options: argparse.Namespace) -> str:
    """The tables of all files."""
    tables = []
    for file in options.files:
        content = json.loads((file if file.exists() else ROOT / file).read_text())
        if "sizes" in content:
            tables.append(size_table(content["sizes"]))
            continue
        if "curves" in content:
            tables.append(curve_table(content["curves"]))
            continue
        found = comparisons(content["results"])
        if options.rows:
            text = all_rows(content["results"])
        else:
            text = comparison_table(summary(found) if options.summary else found, with_floor=options.details)
        tables.append(f"{describe(content['machine'])}:\n\n{text}" if options.details else text)
    return "\n\n".join(tables)


def parser() -> argparse.ArgumentParser:
    """The command line, also used in markers."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report", description="Results as markdown tables."
    )
    parser.add_argument(
        "files", nargs="+", type=Path, help="JSON files; paths are relative to here or to the project"
    )
    parser.add_argument("--summary", action="store_true", help="only the best, median and worst operator")
    parser.add_argument("--rows", action="store_true", help="every row of every case")
    parser.add_argument("--details", action="store_true", help="add the machine, and the floor of each case")
    parser.add_argument(
        "--update", action="store_true", help="the files are markdown: rewrite the tables in them"
    )
    return parser


def updated(text: str) -> str:
    """The markdown with every table between markers regenerated."""

    def rewrite(match: re.Match[str]) -> str:
        options = parser().parse_args(shlex.split(match["arguments"]))
        gap = "\n" if options.details else ""  # a blank line before and after text
        return f"{match['start']}{gap}{generate(options)}\n{gap}{match['end']}"

    return MARKER.sub(rewrite, text)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.unfinished")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(unfinished, path)


def main() -> None:
    """See the module."""
    options = parser().parse_args()
    if not options.update:
        print(generate(options))
        return
    for file in options.files:
        file.write_text(updated(file.read_text()))


if __name__ == "__main__":
    main()
