"""Times every row of every case in turns; prints one markdown table and writes JSON.

python -m benchmarks.table --out benchmarks/results/NAME.json [--group nms] [--quick]
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.case import COMPILED, OURS, Case, devices, prepare, torchvision
from benchmarks.timing import time_in_turns
from fcos_fast._extension import backend, cpu_error

FOLDER = Path(__file__).parent
GROUPS = sorted(path.stem.removeprefix("bench_") for path in FOLDER.glob("bench_*.py"))


def main() -> int:
    """Returns 1 where a row failed or gave another result than its peer."""
    arguments = parse_arguments()
    if torchvision is None:
        tell("torchvision is not installed: its rows are missing, and the reference is the peer")
    facts = machine()
    if facts["load"] > 0.5:
        tell(f"something else keeps {facts['load']:.1f} cores busy: times of several threads mean little")
    results = []
    for group in arguments.group or GROUPS:
        for case in importlib.import_module(f"benchmarks.bench_{group}").CASES:
            for device in devices():
                tell(f"{case.name} on {device} ...")
                with backend("native"):
                    results += measure(case, device, arguments.quick)
    print(markdown(results))
    write_json(arguments.out, {"machine": facts, "quick": arguments.quick, "results": results})
    failed = sum("error" in result for result in results)
    tell(f"written: {arguments.out}; rows that failed or were wrong: {failed} of {len(results)}")
    return int(failed > 0)


def tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument(
        "--group", action="append", choices=GROUPS, help="this operator only; may be repeated"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"fewer samples; no {COMPILED}; no reference where torchvision is",
    )
    return parser.parse_args()


def measure(case: Case, device: str, quick: bool) -> list[dict]:
    """One result per row. A row that fails or is wrong has ``error`` in place of its times."""
    prepared = prepare(case, device)
    left_out = {COMPILED, "reference"} - {case.peer} if quick else set()
    rows, errors = {}, {}
    for row, call in prepared.calls.items():
        if row in left_out:
            continue
        try:
            prepared.verify(row)
            rows[row] = call
        except Exception as error:  # one row must not cost the others their measurement
            tell(f"  {row}: {error}")
            errors[row] = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    budget_ms, least, most = (300.0, 2, 20) if quick else (2000.0, 3, 100)
    samples = time_in_turns(rows, device, budget_ms, least, most)
    peer_ms = percentile(samples[case.peer], 0.5)
    outcome = {row: statistics(times, peer_ms) for row, times in samples.items()} | errors
    work = {"operator": case.operator, "case": case.title, "device": device, "peer": case.peer}
    return [work | {"row": row} | outcome[row] for row in prepared.calls if row in outcome]


def statistics(samples: list[float], peer_ms: float) -> dict:
    p20, p50, p80 = (percentile(samples, q) for q in (0.2, 0.5, 0.8))
    return {
        "p20_ms": p20,
        "p50_ms": p50,
        "p80_ms": p80,
        "samples": len(samples),
        "times_faster_than_peer": peer_ms / p50,
    }


def percentile(samples: list[float], q: float) -> float:
    return torch.tensor(samples, dtype=torch.float64).quantile(q).item()


def markdown(results: list[dict]) -> str:
    """All results as one table; the peer of each case has the ratio 1."""
    lines = [
        "| work | device | row | p20 ms | p50 ms | p80 ms | peer / row |",
        "|---|---|---|--:|--:|--:|--:|",
    ]
    work = None
    for result in results:
        same, work = work == (this := title(result)), this
        if "error" in result:
            columns = ["failed", "", "", ""]
        else:
            keys = ("p20_ms", "p50_ms", "p80_ms", "times_faster_than_peer")
            columns = [f"{result[key]:,.0f}" if result[key] >= 100 else f"{result[key]:.3g}" for key in keys]
        row = f"**{result['row']}**" if result["row"] == OURS else result["row"]
        lines.append(
            f"| {'' if same else work} | {'' if same else result['device']} | {row} | {' | '.join(columns)} |"
        )
    return "\n".join(lines)


def title(result: dict) -> str:
    return f"{result['operator']}: {result['case']}"


def machine() -> dict:
    """Everything a reader needs to judge a time."""
    return {
        "cpu": cpu_name(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],  # of the last minute, in cores
        "simd": importlib.import_module("fcos_fast._C").simd() if cpu_error is None else None,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__ if torchvision else None,
        "cuda": torch.version.cuda,
        "python": platform.python_version(),
        "system": platform.platform(),
        "commit": commit(),
    }


def cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return names[0] if names else platform.processor() or platform.machine()


def commit() -> str | None:
    """Hash of the commit, with ``-dirty`` behind it where files were changed since."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=FOLDER, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def write_json(path: Path, content: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.unfinished")
    unfinished.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(unfinished, path)


if __name__ == "__main__":
    sys.exit(main())
