"""Everything that needs a GPU, in one unattended run of under nine minutes: ``python -m tests.gpu_check OUT``.

Builds a copy of the tree for the GPU that is there, with the Python and torch that are there and no network; then the
tests, compute-sanitizer, and only then the benchmarks. Each step has its own time and hides no other. In the folder
OUT: gpu-check.json, .md (summary and table) and .log. The exit status is 0 where nothing failed.

Without a GPU it is a rehearsal: the same steps, those of the GPU skipped and counted. It proves nothing about a GPU.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from tests.tree import ROOT, copy_tree, package_environment

REMARKS = 12  # of a step in the summary
SECONDS = 520  # of everything; what writes the report comes on top
TREE = ROOT / "build" / "gpu-check"
TESTS = [
    "tests/ops",
    "tests/models",
    *(f"tests/{path.name}" for path in sorted((ROOT / "tests").glob("test_*.py"))),
]
SMALL = ["tests/ops/test_every_operator.py", "-k", "test_equals_its_peer"]


@dataclasses.dataclass
class Outcome:
    """What became of a step.

    Attributes:
        verdict: passed, failed, skipped or "out of time".
        passed, failed: numbers of tests.
        skipped: reason -> number of tests.
        remarks: what failed, or why the step was skipped.
    """

    step: str
    verdict: str = "passed"
    seconds: float = 0
    passed: int = 0
    failed: int = 0
    skipped: dict[str, int] = dataclasses.field(default_factory=dict)
    remarks: list[str] = dataclasses.field(default_factory=list)


class Check:
    """One run: its folder, its log, its time."""

    def __init__(self, out: Path, commit: str, seconds: float):
        self.out, self.seconds = out, seconds
        self.scratch = Path(tempfile.mkdtemp(prefix="gpu-check-"))
        self.log = (out / "gpu-check.log").open("w")
        self.start = time.monotonic()
        self.environment = package_environment(
            TREE, PYTHONUNBUFFERED="1", **({"FCOS_FAST_COMMIT": commit} if commit else {})
        )
        self.outcomes: list[Outcome] = []

    def left(self) -> float:
        """Seconds until everything is to be done."""
        return self.seconds - (time.monotonic() - self.start)

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
        seconds = min(seconds, self.left())
        tell(f"{name} ... (at most {max(seconds, 0):.0f} s)")
        if seconds < 5:
            outcome.verdict, outcome.remarks = "out of time", ["not begun"]
        else:
            start = time.monotonic()
            status = self.run(list(map(str, command)), seconds, environment)
            outcome.seconds = round(time.monotonic() - start, 1)
            if read:
                read(outcome)
            if status is None:
                outcome.verdict = "out of time"
            elif status != 0 or outcome.failed:
                outcome.verdict = "failed"
                outcome.remarks = outcome.remarks or [f"exit status {status}; see the log"]
            elif outcome.skipped and not outcome.passed:
                outcome.verdict = "skipped"
        return self.add(outcome)

    def skip(self, name: str, reason: str) -> Outcome:
        """Count a step that cannot run here."""
        tell(name)
        return self.add(Outcome(name, "skipped", remarks=[reason]))

    def add(self, outcome: Outcome) -> Outcome:
        """Keep it and say it."""
        self.outcomes.append(outcome)
        tell(f"  {line_of(outcome)}")
        return outcome

    def run(self, command: list[str], seconds: float, environment: dict[str, str]) -> int | None:
        """Exit status, or None where it had to be stopped: asked first, so that pytest still writes what it knows."""
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
        for signal_number, patience in ((signal.SIGINT, seconds), (signal.SIGKILL, 8), (None, None)):
            try:
                status = process.wait(patience)
                return status if patience == seconds else None
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal_number)

    def pytest(
        self, name: str, seconds: float, *arguments, under: tuple = (), read=None, **environment
    ) -> Outcome:
        """A step of tests, counted with the reasons of those skipped."""
        xml = self.scratch / f"{len(self.outcomes)}.xml"

        def count(outcome: Outcome) -> None:
            count_tests(xml, outcome)
            if read:
                read(outcome)

        command = [
            *under,
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "--tb=short",
            "--continue-on-collection-errors",
            f"--junitxml={xml}",
        ]
        return self.step(name, seconds, [*command, *arguments], count, **environment)


def count_tests(xml: Path, outcome: Outcome) -> None:
    """Complete the outcome from pytest's JUnit file."""
    if not xml.exists():
        outcome.failed += 1
        outcome.remarks.append("pytest wrote no results")
        return
    skipped = Counter()
    for case in ElementTree.parse(xml).iter("testcase"):
        wrong = case.find("failure") if case.find("failure") is not None else case.find("error")
        if wrong is not None:
            outcome.failed += 1
            why = (wrong.get("message") or "").splitlines()
            outcome.remarks.append(f"{case.get('classname')}::{case.get('name')}: {(why or [''])[0]}"[:300])
        elif (skip := case.find("skipped")) is not None:
            of_a_file = re.search(r"Skipped: (.+?)['\"]\)", skip.text or "")
            skipped[of_a_file.group(1) if of_a_file else skip.get("message")] += 1
        else:
            outcome.passed += 1
    outcome.skipped = dict(skipped)


def count_reports(text: str, outcome: Outcome) -> None:
    """Complete the outcome from compute-sanitizer's text: reports about a kernel of ours fail it, others are told."""
    others = 0
    for report in re.split(r"^========= (?=\S)", text, flags=re.MULTILINE)[1:]:
        if re.match(r"COMPUTE-SANITIZER|[A-Z ]+SUMMARY", report):
            continue
        on_device = report.split("Saved host backtrace")[0].replace("=========", "")
        if "fcos_fast::" in on_device:
            outcome.failed += 1
            outcome.remarks.append(" ".join(on_device.split())[:300])
        else:
            others += 1
    if others:
        outcome.remarks.append(f"{others} reports about kernels of others; see the log")


def sanitize(check: Check, tool: str, seconds: float, log: Path) -> None:
    """One of compute-sanitizer's tools over one small case of every operator."""
    program = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if program is None:
        check.skip(f"compute-sanitizer {tool}", "compute-sanitizer is not installed")
        return
    # initcheck must see the kernels of others too: what they write is initialised.
    only_ours = () if tool == "initcheck" else ("--kernel-name", "kns=fcos_fast")
    options = (
        "--tool",
        tool,
        *only_ours,
        "--log-file",
        log,
        "--report-api-errors",
        "no",
        "--require-cuda-init",
        "no",
    )

    def read(outcome: Outcome) -> None:
        text = log.read_text() if log.exists() else ""
        check.log.write(text)
        count_reports(text, outcome)

    check.pytest(
        f"compute-sanitizer {tool}",
        seconds,
        *SMALL,
        *("-m", "gpu"),
        under=(program, *options),
        read=read,
        PYTORCH_NO_CUDA_MEMORY_CACHING="1",  # every tensor its own allocation: its ends are ends
    )


def benchmark(check: Check, gpu: bool) -> dict:
    """All cases without torch.compile, which takes long to begin; then with it, as many as time allows."""
    if not gpu:
        return time_rows(
            check, "benchmarks", "centerness and not compile and not 358", 0.1, check.left() - 10
        )
    first = time_rows(check, "benchmarks", "not cpu and not compile", 0.2, 0.6 * check.left())
    second = time_rows(check, "benchmarks with torch.compile", "not cpu", 0.2, check.left() - 10)
    rows = {}
    for result in [*first.get("results", []), *second.get("results", [])]:
        rows[tuple(result[key] for key in ("operator", "case", "device", "row"))] = result
    return first | second | {"results": [rows[key] for key in sorted(rows, key=lambda key: key[:3])]}


def time_rows(check: Check, name: str, which: str, row_seconds: float, seconds: float) -> dict:
    """What ``pytest benchmarks`` writes."""
    path = check.scratch / f"{len(check.outcomes)}.json"
    options = (
        "--row-seconds",
        row_seconds,
        "--deadline",
        seconds - 25,
        "--results",
        path,
        "--benchmark-quiet",
    )
    check.pytest(name, seconds, "benchmarks", "-k", which, *options)
    return json.loads(path.read_text()) if path.exists() else {}


def report(check: Check, machine: dict, benchmarks: dict) -> bool:
    """Write JSON and markdown; is everything well?"""
    bad = [outcome for outcome in check.outcomes if outcome.verdict in ("failed", "out of time")]
    machine = benchmarks.get("machine", machine)  # which knows the binary too
    content = {
        "machine": machine,
        "rehearsal": not machine.get("gpu"),
        "ok": not bad,
        "seconds": round(time.monotonic() - check.start, 1),
        "steps": [dataclasses.asdict(outcome) for outcome in check.outcomes],
        "benchmarks": benchmarks.get("results", []),
    }
    (check.out / "gpu-check.json").write_text(json.dumps(content, indent=1) + "\n")
    lines = [
        title(machine),
        "",
        "| step | verdict | passed | failed | skipped | s |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for o in check.outcomes:
        lines.append(
            f"| {o.step} | {o.verdict} | {o.passed} | {o.failed} | {sum(o.skipped.values())} | {o.seconds:.0f} |"
        )
    lines.append("")
    for o in check.outcomes:
        lines += [f"* {o.step}: {count} skipped: {reason}" for reason, count in o.skipped.items()]
        lines += [f"* {o.step}: {remark}" for remark in o.remarks[:REMARKS]]
        if len(o.remarks) > REMARKS:
            lines.append(f"* {o.step}: and {len(o.remarks) - REMARKS} more; see the log")
    if not machine.get("torchvision"):
        lines.append("* torchvision is absent: its rows are missing, and the tests against it are skipped")
    summary = "\n".join(lines)
    table = table_of(benchmarks, check) if benchmarks.get("results") else "No benchmark has run."
    facts = "\n".join(f"    {line}" for line in json.dumps(machine, indent=1).splitlines())
    (check.out / "gpu-check.md").write_text(f"{summary}\n\n{table}\n\n{facts}\n")
    tell(f"\n{summary}\n\n{table}\n")
    total = Counter()
    for o in check.outcomes:
        total.update(passed=o.passed, failed=o.failed, skipped=sum(o.skipped.values()))
    tell(
        f"{dict(total)}; steps that failed: {', '.join(o.step for o in bad) or 'none'}; written: {check.out}"
    )
    if not machine.get("gpu"):
        tell(NO_GPU)
    return not bad


def table_of(benchmarks: dict, check: Check) -> str:
    """The benchmarks' markdown, made where torch can be imported."""
    (check.scratch / "results.json").write_text(json.dumps(benchmarks["results"]))
    code = "import json, sys; from benchmarks.report import markdown; print(markdown(json.load(open(sys.argv[1]))))"
    command = [sys.executable, "-c", code, str(check.scratch / "results.json")]
    done = subprocess.run(
        command, cwd=TREE, env=check.environment, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or done.stderr


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
    """The outcome in a line."""
    skipped = sum(outcome.skipped.values())
    counts = (
        f", {outcome.passed} passed, {outcome.failed} failed, {skipped} skipped"
        if outcome.passed or skipped
        else ""
    )
    return f"{outcome.verdict} in {outcome.seconds:.0f} s{counts}" + "".join(
        f"\n    {r}" for r in outcome.remarks[:5]
    )


def tell(message: str) -> None:
    """To whoever waits."""
    print(message, flush=True)


def main() -> int:
    """Returns 1 where a step failed or found no time."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for the results")
    parser.add_argument("--commit", default="", help="hash to name where git is not at hand")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="time for everything")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    check = Check(arguments.out.resolve(), arguments.commit, arguments.seconds)
    try:
        return int(not run_steps(check))
    finally:
        check.log.close()
        shutil.rmtree(check.scratch, ignore_errors=True)


def run_steps(check: Check) -> bool:
    """Correctness first, speed after."""
    copy_tree(TREE)
    facts = check.scratch / "machine.json"
    check.step("machine", 90, [sys.executable, "-m", "benchmarks.machine", facts])
    machine = json.loads(facts.read_text()) if facts.exists() else {}
    gpu = machine.get("gpu") or {}
    if not gpu:
        tell(NO_GPU)
    build = check.step(
        "build",
        280,
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        TORCH_CUDA_ARCH_LIST=gpu.get("compute_capability", "9.0"),
        FCOS_FAST_BUILD="cuda" if gpu else "auto",
    )
    check.step("info", 60, [sys.executable, "-m", "fcos_fast.info"])
    if build.verdict != "passed":
        check.skip("everything else", "needs the build")
        return report(check, machine, {})
    check.pytest("tests on the GPU", 150, *TESTS, "-m", "gpu and not large")
    for tool, seconds in (("memcheck", 60), ("racecheck", 50), ("initcheck", 50), ("synccheck", 40)):
        if gpu:
            sanitize(check, tool, seconds, check.scratch / f"{tool}.log")
        else:
            check.skip(f"compute-sanitizer {tool}", "no CUDA device")
    check.pytest("large tensors on the GPU", 60, *TESTS, "-m", "gpu and large")
    check.pytest(
        "tests of the operators on the CPU",
        90 if gpu else 240,
        "tests/ops",
        "-m",
        "not (gpu or slow or large)",
    )
    return report(check, machine, benchmark(check, bool(gpu)))


if __name__ == "__main__":
    sys.exit(main())
