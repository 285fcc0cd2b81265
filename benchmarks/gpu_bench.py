"""Benchmarks on a GPU, the most important first within a time limit: ``python -m benchmarks.gpu_bench OUT``.

Builds a copy of the tree for the GPU of this machine and measures row by row. Writes gpu-bench.json, .md (a table of
measured and predicted times) and .log to the folder OUT after every row, so that a stopped run keeps its results. If a
row takes too long or crashes its process, only that row is lost. The exit status is 0 if none of our rows failed.

Without a GPU this is a rehearsal: some rows on the CPU, with GPU rows skipped and counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from benchmarks.report import GPU_COLUMNS, all_rows, with_prediction
from benchmarks.rows import OURS
from tests.gpu_steps import Outcome, Run, end, prepare, run_from_command_line, tell

STARTING = 90  # seconds until a process starts its first row
COMMAND = [sys.executable, "-m", "benchmarks.gpu_rows"]
DRAIN = 5  # seconds reserved for the end of the run
NO_TIME = "no time left"


class Rows:
    """What the measuring processes have written so far.

    Attributes:
        plan: the rows in the order of measurement.
        results: results of rows, by their index in the plan.
        started: index of the row that was started last; None before the first.
    """

    def __init__(self, file: Path, device: str):
        self.file, self.device = file, device
        file.touch()
        self.plan: list[dict] = []
        self.skipped = 0
        self.copy_gb_per_s: dict[str, float] = {}
        self.results: dict[int, dict] = {}
        self.started: int | None = None
        self.ended = False
        self._read = 0

    def read(self) -> bool:
        """Read new lines. Returns whether there were any."""
        with self.file.open("rb") as file:
            file.seek(self._read)
            whole, newline, _ = file.read().rpartition(b"\n")
        self._read += len(whole + newline)
        for line in map(json.loads, whole.splitlines()):
            if "plan" in line:
                self.plan, self.skipped, self.copy_gb_per_s = line["plan"], line["skipped"], line["copy"]
            elif "started" in line:
                self.started = line["started"]
            elif "result" in line:
                self.results[line["job"]] = line["result"]
            self.ended = self.ended or "end" in line
        return bool(newline)

    @property
    def running(self) -> dict | None:
        """The row that was started and has no result yet."""
        return (
            self.plan[self.started] if self.started is not None and self.started not in self.results else None
        )

    def fail(self, why: str) -> None:
        """Record why the running row has no result."""
        row = {key: value for key, value in self.running.items() if key != "seconds"}
        self.results[self.started] = row | {"device": self.device, "error": why}

    @property
    def next(self) -> int:
        """Index of the first row that was not started."""
        done = [*self.results, *([] if self.started is None else [self.started])]
        return max(done, default=-1) + 1


def steps(run: Run) -> None:
    """Build, and measure until all rows are done or the time is up."""
    if prepare(run):
        measure(run)


def measure(run: Run, command: list = COMMAND) -> Outcome:
    """Measure all rows as one step. If a row crashes or takes too long, a new process continues with the next."""
    rows = Rows(run.scratch / "rows.jsonl", "cuda" if run.gpu else "cpu")
    outcome = Outcome("rows")
    run.extra = lambda: report(run, rows)
    begin = run.clock()
    tell(f"rows ... (at most {run.left():.0f} s)")
    while not rows.ended and run.left() > DRAIN and (not rows.plan or rows.next < len(rows.plan)):
        first = rows.next
        process = run.begin([*command, rows.file, "--device", rows.device, "--first", first])
        why = watch(run, rows, process)
        if rows.next == first and why != NO_TIME:  # no row was started
            outcome.failed += 1
            outcome.remarks.append(f"{why}: {run.last_lines(process)}")
            break
    outcome.seconds = round(run.clock() - begin, 1)
    count(rows, outcome)
    return run.add(outcome)


def watch(run: Run, rows: Rows, process: subprocess.Popen) -> str:
    """Wait until a process exits or has to be stopped. Returns the reason."""
    since = run.clock()
    while True:
        status = wait_a_little(process)
        if rows.read():
            since = run.clock()
            run.write()
            continue  # there may be more
        limit = run.scaled(rows.running["seconds"] if rows.running else STARTING)
        if status is not None:
            why = f"the process exited with {status}"
        elif run.left() <= DRAIN:
            why = NO_TIME
        elif run.clock() - since > limit:
            why = f"stopped after {run.clock() - since:.0f} s"
        else:
            continue
        if status is None:
            end(process, 0)
            rows.read()
        if rows.running and why != NO_TIME:
            rows.fail(why if status is None else f"{why}; {last_line(run, process)}")
        return why


def wait_a_little(process: subprocess.Popen) -> int | None:
    """The exit status, or None if it is still running."""
    try:
        return process.wait(0.2)
    except subprocess.TimeoutExpired:
        return None


def last_line(run: Run, process: subprocess.Popen) -> str:
    """The last output line of a process, which usually shows why it exited."""
    return (run.last_lines(process).splitlines() or ["no output"])[-1].strip()


def count(rows: Rows, outcome: Outcome) -> None:
    """Count rows like tests. Only our rows can fail the step; failures of others are reported."""
    failed = {index: result for index, result in rows.results.items() if "error" in result}
    ours = [index for index in failed if rows.plan[index]["row"].startswith(OURS)]
    outcome.passed = len(rows.results) - len(failed)
    outcome.failed += len(ours)
    outcome.remarks += [f"{r['operator']} {r['case']}, {r['row']}: {r['error']}" for r in failed.values()]
    skipped = {
        "not measured" if outcome.failed else NO_TIME: len(rows.plan) - len(rows.results),
        "no CUDA device": rows.skipped,
        "failed rows that are not ours": len(failed) - len(ours),
    }
    outcome.skipped = {why: number for why, number in skipped.items() if number}
    if outcome.failed:
        outcome.verdict = "failed"
    elif not outcome.passed:
        outcome.verdict = "out of time"


def report(run: Run, rows: Rows) -> tuple[dict, str]:
    """JSON and markdown of the results: measured and predicted times."""
    copies = rows.copy_gb_per_s
    order = {}  # of the cases
    for row in rows.plan:
        order.setdefault((row["operator"], row["case"]), len(order))
    results = [
        with_prediction(result, copies[result["device"]]) if result["device"] in copies else result
        for _, result in sorted(
            rows.results.items(), key=lambda item: (order[item[1]["operator"], item[1]["case"]], item[0])
        )
    ]
    copied = ", ".join(f"{speed:,} GB/s on {device}" for device, speed in copies.items())
    explanation = (
        f"Copy bandwidth in this run: {copied or 'not measured'}. The predicted time is the minimum number of bytes "
        "moved, divided by this bandwidth; it does not apply to rows that are bound by computation."
    )
    text = f"{explanation}\n\n{all_rows(results, GPU_COLUMNS)}"
    return {"copy_gb_per_s": copies, "benchmarks": results}, text


if __name__ == "__main__":
    sys.exit(run_from_command_line("benchmarks.gpu_bench", "Run the benchmarks on a GPU.", steps))
