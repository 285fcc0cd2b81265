"""Results as the JSON, the table and the numbers that are quoted."""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.rows import OURS

if TYPE_CHECKING:  # which imports torch
    from benchmarks.case import Case


def result_of(case: Case, device: str, row: str, outcome: dict[str, list[float] | Exception]) -> dict:
    """What the JSON holds of a row: its times, or ``error`` in their place."""
    result = {
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
    """Between the two nearest samples."""
    ordered = sorted(samples)
    below, fraction = divmod(q * (len(ordered) - 1), 1)
    above = min(int(below) + 1, len(ordered) - 1)
    return ordered[int(below)] * (1 - fraction) + ordered[above] * fraction


def with_prediction(result: dict, copy_gb_per_s: float) -> dict:
    """The result with the bytes that must be moved over the bandwidth of a copy in the same run, beside its time."""
    if not result.get("bytes") or "p50_ms" not in result:
        return result
    predicted = result["bytes"] / (copy_gb_per_s * 1e6)
    return result | {
        "gb_per_s": result["bytes"] / (result["p50_ms"] * 1e6),
        "predicted_ms": predicted,
        "share_of_prediction": predicted / result["p50_ms"],
    }


GPU_COLUMNS = {
    "ms (p20 / p50 / p80)": lambda r: " / ".join(number(r.get(f"p{q}_ms")) for q in (20, 50, 80)),
    "host ms": lambda r: number(r.get("host_ms")),
    "MB moved at least": lambda r: number(r["bytes"] / 1e6) if r.get("bytes") else "",
    "GB/s": lambda r: number(r.get("gb_per_s")),
    "predicted ms": lambda r: number(r.get("predicted_ms")),
    "predicted / measured": lambda r: number(r.get("share_of_prediction")),
    "peer / row": lambda r: number(r.get("times_faster_than_peer")),
}


def gpu_markdown(results: list[dict]) -> str:
    """All results as one table, measured beside predicted; a row that failed says why."""
    lines = [
        f"| work | row | {' | '.join(GPU_COLUMNS)} |",
        f"|---|---|{'--:|' * len(GPU_COLUMNS)}",
    ]
    work = None
    for result in results:
        same, work = work == (this := work_of(result)), this
        row = f"**{result['row']}**" if result["row"].startswith(OURS) else result["row"]
        title = "" if same else f"`{result['operator']}` {result['case']}"
        columns = [column(result) for column in GPU_COLUMNS.values()]
        if "error" in result:
            columns[0] = f"failed: {result['error']}".replace("|", "/")
        lines.append(f"| {title} | {row} | {' | '.join(columns)} |")
    return "\n".join(lines)


def markdown(results: list[dict]) -> str:
    """All results as one table; the peer of each case has the ratio 1."""
    lines = [
        "| work | device | row | p20 ms | p50 ms | p80 ms | peer / row |",
        "|---|---|---|--:|--:|--:|--:|",
    ]
    work = None
    for result in results:
        same, work = work == (this := work_of(result)), this
        columns = [
            number(result.get(key)) for key in ("p20_ms", "p50_ms", "p80_ms", "times_faster_than_peer")
        ]
        if "error" in result:
            columns[0] = "failed"
        row = f"**{result['row']}**" if result["row"] == OURS else result["row"]
        operator, case, device = ("", "", "") if same else work
        title = "" if same else f"`{operator}` {case}"
        lines.append(f"| {title} | {device} | {row} | {' | '.join(columns)} |")
    return "\n".join(lines)


def work_of(result: dict) -> tuple[str, str, str]:
    """What rows must share to be compared."""
    return result["operator"], result["case"], result["device"]


def number(value: float | None) -> str:
    """Three digits."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def write_json(path: Path, content: dict) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.unfinished")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(unfinished, path)
