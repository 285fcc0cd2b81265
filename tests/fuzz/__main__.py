"""``python -m tests.fuzz --minutes 30``: fuzzes every instruction set of this CPU in turn until the time is up.

Failing cases are appended to found.json, which the tests replay.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter

from tests.fuzz.run import FOUND
from tests.test_simd import RUNNABLE
from tests.tree import ROOT

SLICE = 120  # seconds per process


def run(simd: str, *options: str) -> subprocess.CompletedProcess:
    """Run a search in a separate process; its last output line is a summary."""
    return subprocess.run(
        [sys.executable, "-m", "tests.fuzz.run", *options],
        cwd=ROOT,
        env=os.environ | {"FCOS_FAST_SIMD": simd},
        stdout=subprocess.PIPE,
        text=True,
    )


def remember(failures: list[dict]) -> None:
    """Append to found.json."""
    found = json.loads(FOUND.read_text())
    found += [failure for failure in failures if failure not in found]
    FOUND.write_text(json.dumps(found, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Search for inputs on which an operator and its reference differ."
    )
    parser.add_argument("--minutes", type=float, default=30)
    end = time.monotonic() + 60 * parser.parse_args().minutes
    counts: Counter = Counter()
    failures: list[dict] = []
    start = time.time_ns() % 2**31  # a different search each time
    print(f"fuzzing {', '.join(RUNNABLE)}; first seed {start}", flush=True)
    turn = 0
    while (left := end - time.monotonic()) > 0 and len(failures) < 10:
        simd = RUNNABLE[::-1][turn % len(RUNNABLE)]
        done = run(simd, "--seconds", str(min(SLICE, left)), "--start", str(start + 1000 * turn))
        summary = done.stdout.splitlines()[-1] if done.stdout else ""
        if not summary.startswith("{"):
            print(
                f"{simd}: the process exited with {done.returncode}; seed {start + 1000 * turn}", flush=True
            )
            return 1
        summary = json.loads(summary)
        counts.update({f"{simd} {name}": count for name, count in summary["counts"].items()})
        failures += summary["failures"]
        remember(summary["failures"])
        print(
            f"{simd}: {sum(summary['counts'].values()):,} cases, {len(summary['failures'])} failures",
            flush=True,
        )
        turn += 1
    print(f"{sum(counts.values()):,} cases, {len(failures)} failures")
    for name, count in sorted(counts.items()):
        print(f"  {name}: {count:,}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
