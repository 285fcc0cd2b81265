"""What ``gpu_check`` and ``gpu_bench`` share: steps with a time of their own, a build, a report after each step.

Both run with the Python and torch that are there, without network, ``.git``, ``.venv`` or pip, on a copy of the tree.
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

REMARKS = 12  # of a step in the summary
SECONDS = 465  # of everything; what writes the report comes on top, within eight minutes
PATIENCE = 8  # seconds that a process has to end by itself once it was asked to
TREE = ROOT / "build" / "gpu-tree"
BAD = ("failed", "out of time")


@dataclasses.dataclass
class Outcome:
    """What became of a step.

    Attributes:
        verdict: passed, failed, skipped or "out of time".
        passed, failed: numbers of tests or rows.
        skipped: reason -> number of tests or rows.
        remarks: what failed, or why the step was skipped.
    """

    step: str
    verdict: str = "passed"
    seconds: float = 0
    passed: int = 0
    failed: int = 0
    skipped: dict[str, int] = dataclasses.field(default_factory=dict)
    remarks: list[str] = dataclasses.field(default_factory=list)


class Run:
    """One run of ``name``: its folder, its log, its time.

    Args:
        name: the report is ``name``.json and .md, the log ``name``.log.
        out: folder for them.
        commit: hash to name where git is not at hand.
        seconds: time for everything; of another than ``SECONDS`` the steps get the same share.
        clock: seconds that only grow.
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
        self.extra: Callable[[], tuple[dict, str]] = lambda: ({}, "")  # more of the report: JSON and markdown

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exception: object) -> None:
        self.log.close()
        shutil.rmtree(self.scratch, ignore_errors=True)

    @property
    def gpu(self) -> dict:
        """The GPU that is there; {} in a rehearsal."""
        return self.machine.get("gpu") or {}

    def left(self) -> float:
        """Seconds until everything is to be done."""
        return self.seconds - (self.clock() - self.start)

    def scaled(self, seconds: float) -> float:
        """What so many seconds of ``SECONDS`` are of the time that this run has."""
        return seconds * self.seconds / SECONDS

    def share(self, seconds: float) -> float:
        """The same, but not more than is left."""
        return min(self.scaled(seconds), self.left())

    def step(
        self,
        name: str,
        seconds: float,
        command: list,
        read: Callable[[Outcome], None] | None = None,
        **environment,
    ) -> Outcome:
        """Run a command for at most so long; ``read`` completes its outcome from the files that it wrote."""
        outcome = Outcome(name)
        seconds = self.share(seconds)
        tell(f"{name} ... (at most {max(seconds, 0):.0f} s)")
        if seconds < 5:
            outcome.verdict, outcome.remarks = "out of time", ["not begun"]
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
        """Count a step that cannot run here."""
        tell(name)
        return self.add(Outcome(name, "skipped", remarks=[reason]))

    def add(self, outcome: Outcome) -> Outcome:
        """Keep it, say it and write the report: whoever stops the run later has it."""
        self.outcomes.append(outcome)
        tell(f"  {line_of(outcome)}")
        self.write()
        return outcome

    def begin(self, command: list, **environment: str) -> subprocess.Popen:
        """Start a command in the copy of the tree; what it prints goes to the log."""
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
        """The end of what a process wrote to the log."""
        with open(self.log.name, errors="replace") as log:
            log.seek(process.log_begins)
            lines = [line for line in log.read().splitlines() if line.strip()]
        return "\n    ".join(lines[-12:])[-1500:]

    def write(self) -> bool:
        """The report as JSON and markdown; is everything well?"""
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
        """Write and say what came of everything; the exit status."""
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
    """Exit status, or None where it had to be stopped: asked first, so that it still writes what it knows."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(seconds)
    for number in (signal.SIGINT, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        # Not longer even where it was killed: a process can hang in the driver.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(PATIENCE)
    return None


def prepare(run: Run) -> bool:
    """Copy the tree, look at the machine and build for its GPU; can the rest run?"""
    copy_tree(TREE)
    facts = run.scratch / "machine.json"
    if run.commit:
        (TREE / "COMMIT").write_text(run.commit)

    def read(outcome: Outcome) -> None:
        if facts.exists():
            run.machine = json.loads(facts.read_text())

    run.step("machine", 60, [sys.executable, "-m", "benchmarks.machine", facts], read)
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
        run.skip("everything else", "needs the build")
    return build.verdict == "passed"


def summary(run: Run) -> str:
    """Steps, counts, and the reason of whatever did not pass."""
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
        lines.append("* torchvision is absent: its rows are missing, and the tests against it are skipped")
    return "\n".join(lines)


NO_GPU = """
************************************************************************
*  NO GPU HERE: this was a REHEARSAL. No CUDA kernel ran, nothing was  *
*  measured on a GPU, and no claim about a GPU follows from it.        *
************************************************************************"""


def title(machine: dict) -> str:
    """What ran where."""
    if not machine:
        return "# The machine could not be read: see the log"
    gpu = machine.get("gpu")
    where = f"{gpu['name']}, driver {gpu['driver_version']}" if gpu else "REHEARSAL without a GPU"
    return f"# {where}; torch {machine['torch']}, CUDA {machine['cuda']}, commit {machine['commit']}"


def line_of(outcome: Outcome) -> str:
    """The outcome in a line, and its first remarks."""
    skipped = sum(outcome.skipped.values())
    counts = f", {outcome.passed} passed, {outcome.failed} failed, {skipped} skipped"
    any_count = outcome.passed or outcome.failed or skipped
    remarks = "".join(f"\n    {remark}" for remark in outcome.remarks[:5])
    return f"{outcome.verdict} in {outcome.seconds:.0f} s{counts if any_count else ''}{remarks}"


def put(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    unfinished = path.with_suffix(f"{path.suffix}.unfinished")
    unfinished.write_text(text)
    os.replace(unfinished, path)


def tell(message: str) -> None:
    """To whoever waits."""
    print(message, flush=True)


def run_from_command_line(name: str, description: str, steps: Callable[[Run], None]) -> int:
    """Exit status: 1 where a step failed or found no time."""
    parser = argparse.ArgumentParser(
        prog=f"python -m tests.{name.replace('-', '_')}", description=description
    )
    parser.add_argument("out", type=Path, help="folder for the results")
    parser.add_argument("--commit", default="", help="hash to name where git is not at hand")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for everything")
    arguments = parser.parse_args()
    # In the background of a shell Ctrl-C is ignored, by what is started here too, which is asked to end by it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with Run(name, arguments.out, arguments.commit, arguments.seconds) as run:
        steps(run)
        return run.finish()
