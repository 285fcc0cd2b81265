"""Shared by ``gpu_check`` and ``gpu_bench``: steps with a time limit, a build, and a report after each step.

Both use the installed Python and torch, need no network, ``.git``, ``.venv`` or pip, and run on a copy of the tree.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.tree import ROOT, copy_tree, package_environment

REMARKS = 12  # per step in the summary
SECONDS = 465  # total, without the writing of the report
PATIENCE = 8  # seconds for a process to exit after SIGINT
TREE = ROOT / "build" / "gpu-tree"
BAD = ("failed", "out of time")


@dataclasses.dataclass
class Outcome:
    """The outcome of a step.

    Attributes:
        verdict: passed, failed, skipped or "out of time".
        passed: number of tests or rows.
        failed: number of tests or rows.
        skipped: reason -> number of tests or rows.
        remarks: failures, or why the step was skipped.
    """

    step: str
    verdict: str = "passed"
    seconds: float = 0
    passed: int = 0
    failed: int = 0
    skipped: dict[str, int] = dataclasses.field(default_factory=dict)
    remarks: list[str] = dataclasses.field(default_factory=list)


class Run:
    """A run of ``name``: its folder, log and time budget.

    Args:
        name: base name of the report (.json and .md) and the log (.log).
        out: folder for report and log.
        commit: commit hash to report if git is unavailable.
        seconds: total time; the limits of the steps are scaled by ``seconds / SECONDS``.
        clock: a monotonic clock in seconds.
    """

    def __init__(
        self, name: str, out: Path, commit: str = "", seconds: float = SECONDS, clock=time.monotonic
    ):
        out.mkdir(parents=True, exist_ok=True)
        self.name, self.out, self.seconds, self.clock = name, out.resolve(), seconds, clock
        self.scratch = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        self.log = (self.out / f"{name}.log").open("w")
        self.start = clock()
        self.environment = package_environment(TREE, PYTHONUNBUFFERED="1")
        self.commit = commit
        self.machine: dict = {}
        self.outcomes: list[Outcome] = []
        self.extra: Callable[[], tuple[dict, str]] = lambda: (
            {},
            "",
        )  # additional content of the report: JSON and markdown

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exception: object) -> None:
        self.log.close()
        shutil.rmtree(self.scratch, ignore_errors=True)

    @property
    def gpu(self) -> dict:
        """The GPU of this machine; {} in a rehearsal."""
        return self.machine.get("gpu") or {}

    def left(self) -> float:
        """Remaining seconds."""
        return self.seconds - (self.clock() - self.start)

    def scaled(self, seconds: float) -> float:
        """Scale a time limit from ``SECONDS`` to the total time of this run."""
        return seconds * self.seconds / SECONDS

    def share(self, seconds: float) -> float:
        """Scale a time limit, but not beyond the remaining time."""
        return min(self.scaled(seconds), self.left())

    def step(
        self,
        name: str,
        seconds: float,
        command: list,
        read: Callable[[Outcome], None] | None = None,
        **environment,
    ) -> Outcome:
        """Run a command with a time limit; ``read`` completes the outcome from files that the command wrote."""
        outcome = Outcome(name)
        seconds = self.share(seconds)
        tell(f"{name} ... (at most {max(seconds, 0):.0f} s)")
        if seconds < 5:
            outcome.verdict, outcome.remarks = "out of time", ["not started"]
            return self.add(outcome)
        start = self.clock()
        process = self.begin(command, **environment)
        status = end(process, seconds)
        outcome.seconds = round(self.clock() - start, 1)
        if read:
            read(outcome)
        if status is None:
            outcome.verdict = "out of time"
        elif status != 0 or outcome.failed:
            outcome.verdict = "failed"
            if not outcome.failed:
                outcome.remarks.append(f"exit status {status}: {self.last_lines(process)}")
        elif outcome.skipped and not outcome.passed:
            outcome.verdict = "skipped"
        return self.add(outcome)

    def skip(self, name: str, reason: str) -> Outcome:
        """Record a step that cannot run here."""
        tell(name)
        return self.add(Outcome(name, "skipped", remarks=[reason]))

    def add(self, outcome: Outcome) -> Outcome:
        """Record and print the outcome, and write the report, so that a stopped run keeps it."""
        self.outcomes.append(outcome)
        tell(f"  {line_of(outcome)}")
        self.write()
        return outcome

    def begin(self, command: list, **environment: str) -> subprocess.Popen:
        """Start a command in the copy of the tree, with its output in the log."""
        command = list(map(str, command))
        self.log.write(f"\n\n==== {' '.join(command)}\n")
        self.log.flush()
        process = subprocess.Popen(
            command,
            cwd=TREE,
            env=self.environment | environment,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        process.log_begins = self.log.tell()
        return process

    def last_lines(self, process: subprocess.Popen) -> str:
        """The last lines that a process wrote to the log."""
        with open(self.log.name, errors="replace") as log:
            log.seek(process.log_begins)
            lines = [line for line in log.read().splitlines() if line.strip()]
        return "\n    ".join(lines[-12:])[-1500:]

    def write(self) -> bool:
        """Write the report as JSON and markdown. Returns whether no step failed."""
        bad = [outcome for outcome in self.outcomes if outcome.verdict in BAD]
        extra, table = self.extra()
        content = {
            "machine": self.machine,
            "rehearsal": not self.gpu,
            "ok": not bad,
            "seconds": round(self.clock() - self.start, 1),
            "steps": [dataclasses.asdict(outcome) for outcome in self.outcomes],
            **extra,
        }
        put(self.out / f"{self.name}.json", json.dumps(content, indent=1) + "\n")
        facts = "\n".join(f"    {line}" for line in json.dumps(self.machine, indent=1).splitlines())
        put(self.out / f"{self.name}.md", f"{summary(self)}\n\n{table}\n\n{facts}\n")
        return not bad

    def finish(self) -> int:
        """Write the report, print a summary and return the exit status."""
        well = self.write()
        _, table = self.extra()
        tell(f"\n{summary(self)}\n\n{table}\n")
        total = Counter()
        for o in self.outcomes:
            total.update(passed=o.passed, failed=o.failed, skipped=sum(o.skipped.values()))
        bad = ", ".join(o.step for o in self.outcomes if o.verdict in BAD)
        tell(f"{dict(total)}; steps that failed: {bad or 'none'}; written: {self.out}")
        if not self.gpu:
            tell(NO_GPU)
        return int(not well)


def end(process: subprocess.Popen, seconds: float) -> int | None:
    """Wait for a process. Returns its exit status, or None if it was stopped (first by SIGINT, to let it clean up)."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(seconds)
    for number in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        # Limited even after SIGKILL: a process can hang in the driver.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
    return None


def prepare(run: Run) -> bool:
    """Copy the tree, record the machine and build for its GPU. Returns whether the build succeeded."""
    copy_tree(TREE)
    facts = run.scratch / "machine.json"
    if run.commit:
        (TREE / "COMMIT").write_text(run.commit)

    def read(outcome: Outcome) -> None:
        if facts.exists():
            run.machine = json.loads(facts.read_text())

    run.step("machine", 60, [sys.executable, "-m", "tests.machine", facts], read)
    if not run.gpu:
        tell(NO_GPU)
    build = run.step(
        "build",
        150,
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        TORCH_CUDA_ARCH_LIST=run.gpu.get("compute_capability", "9.0"),
        FCOS_FAST_BUILD="cuda" if run.gpu else "auto",
    )
    run.step("info", 40, [sys.executable, "-m", "fcos_fast.info"])
    if build.verdict != "passed":
        run.skip("everything else", "the build did not pass")
    return build.verdict == "passed"


def summary(run: Run) -> str:
    """Steps, counts, and the reasons of everything that did not pass."""
    lines = [
        title(run.machine),
        "",
        "| step | verdict | passed | failed | skipped | s |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for o in run.outcomes:
        counts = f"{o.passed} | {o.failed} | {sum(o.skipped.values())}"
        lines.append(f"| {o.step} | {o.verdict} | {counts} | {o.seconds:.0f} |")
    lines.append("")
    for o in run.outcomes:
        lines += [f"* {o.step}: {count} skipped: {reason}" for reason, count in o.skipped.items()]
        lines += [f"* {o.step}: {remark}" for remark in o.remarks[:REMARKS]]
        if len(o.remarks) > REMARKS:
            lines.append(f"* {o.step}: and {len(o.remarks) - REMARKS} more; see the log")
    if run.machine and not run.machine.get("torchvision"):
        lines.append("* torchvision is not installed: its rows are missing, and tests against it are skipped")
    return "\n".join(lines)


NO_GPU = """
************************************************************************
*  NO GPU HERE: this was a REHEARSAL. No CUDA kernel ran, nothing was  *
*  measured on a GPU, and no claim about a GPU follows from it.        *
************************************************************************"""


def title(machine: dict) -> str:
    """The headline: GPU, versions and commit."""
    if not machine:
        return "# The machine could not be identified: see the log"
    gpu = machine.get("gpu")
    where = f"{gpu['name']}, driver {gpu['driver_version']}" if gpu else "REHEARSAL without a GPU"
    return f"# {where}; torch {machine['torch']}, CUDA {machine['cuda']}, commit {machine['commit']}"


def line_of(outcome: Outcome) -> str:
    """The outcome on one line, followed by its first remarks."""
    skipped = sum(outcome.skipped.values())
    counts = f", {outcome.passed} passed, {outcome.failed} failed, {skipped} skipped"
    any_count = outcome.passed or outcome.failed or skipped
    remarks = "".join(f"\n    {remark}" for remark in outcome.remarks[:5])
    return f"{outcome.verdict} in {outcome.seconds:.0f} s{counts if any_count else ''}{remarks}"


def put(path: Path, text: str) -> None:
    """Write a file atomically."""
    unfinished = path.with_suffix(f"{path.suffix}.unfinished")
    unfinished.write_text(text)
    os.replace(unfinished, path)


def tell(message: str) -> None:
    """Print immediately."""
    print(message, flush=True)


def run_from_command_line(module: str, description: str, steps: Callable[[Run], None]) -> int:
    """Returns the exit status: 1 if a step failed or had no time left."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("out", type=Path, help="folder for the results")
    parser.add_argument("--commit", default="", help="commit hash to report if git is unavailable")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="total time")
    arguments = parser.parse_args()
    # Background jobs of a shell ignore SIGINT, and so would the processes started here, which are stopped with it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    name = module.rpartition(".")[2].replace("_", "-")
    with Run(name, arguments.out, arguments.commit, arguments.seconds) as run:
        steps(run)
        return run.finish()
