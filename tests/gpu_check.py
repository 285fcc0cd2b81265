"""Runs all tests that need a GPU, unattended and in under eight minutes: ``python -m tests.gpu_check OUT``.

Builds a copy of the tree for the GPU of this machine, runs the tests with the marker ``gpu``, and then
compute-sanitizer on small inputs of every operator. Each step has its own time limit, so a failing step does not
prevent the others. Writes gpu-check.json, .md (summary) and .log to the folder OUT after every step. The exit status is
0 if nothing failed.

Without a GPU this is a rehearsal: the same steps, with GPU tests skipped and counted. It proves nothing about a GPU.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

from tests.gpu_steps import Outcome, Run, prepare, run_from_command_line

TESTS = [
    "tests/ops",
    "tests/models",
    "tests/engine",
    "tests/integrations",
    "benchmarks/tests/test_every_operator.py",
]
"""All tests with the marker ``gpu``; test_gpu_check.py verifies that there are no others."""
PROCESSES = 6  # parallel test processes on one GPU, if pytest-xdist is installed


def steps(run: Run) -> None:
    """First the results, then the memory accesses."""
    if not prepare(run):
        return
    name, marker = "tests on the GPU", "gpu and not large"
    outcome = run_tests(run, name, 180, marker, TESTS, PROCESSES)
    if not (
        outcome.passed or outcome.failed or outcome.skipped
    ):  # pytest stops if a conftest.py cannot be imported
        for folder in TESTS:
            run_tests(run, f"{name}, {folder}", 90, marker, [folder], PROCESSES)
    run_tests(run, "large tensors on the GPU", 50, "gpu and large", ["tests/ops"])
    for tool, seconds in (("memcheck", 90), ("racecheck", 90)):
        sanitize(run, tool, seconds)


def run_tests(
    run: Run, name: str, seconds: float, marker: str, where: list[str], processes: int = 1
) -> Outcome:
    """Run tests as one step; the plugin writes each outcome immediately."""
    outcomes = run.scratch / f"{len(run.outcomes)}.jsonl"
    options = []
    if installed("xdist") and processes > 1:
        count = max(1, min(processes, (os.cpu_count() or 2) // 2))
        options += ["-n", count, "--dist", "worksteal", "--max-worker-restart", 30]
    if installed("pytest_timeout"):
        options += ["--timeout", 90, "--timeout-method", "thread"]
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "--continue-on-collection-errors"]
    command += ["-p", "no:cacheprovider", "-p", "tests.gpu_plugin", *options, "-m", marker, *where]
    return run.step(
        name, seconds, command, lambda o: count_tests(outcomes, o), GPU_CHECK_OUTCOMES=str(outcomes)
    )


def installed(module: str) -> bool:
    """Whether the module can be imported."""
    return importlib.util.find_spec(module) is not None


def count_tests(outcomes: Path, outcome: Outcome) -> None:
    """Complete the outcome from the file that the plugin wrote; a failed test keeps its first reason."""
    lines = [json.loads(line) for line in outcomes.read_text().splitlines()] if outcomes.exists() else []
    selected = max((line["selected"] for line in lines if "selected" in line), default=0)
    started = {line["started"] for line in lines if "started" in line}
    results: dict[str, tuple[str, str]] = {}
    for line in lines:
        if "test" in line and results.get(line["test"], ("",))[0] != "failed":
            results[line["test"]] = line["outcome"], line["why"]
    outcome.passed = sum(kind == "passed" for kind, _ in results.values())
    outcome.skipped = dict(Counter(why for kind, why in results.values() if kind == "skipped"))
    failed = {test: why for test, (kind, why) in results.items() if kind == "failed"}
    outcome.failed = len(failed)
    outcome.remarks += [f"{test}: {why}" for test, why in failed.items()]
    if interrupted := sorted(started - results.keys()):
        outcome.remarks.append(f"did not finish: {', '.join(interrupted[:5])}")
    if (not_run := selected - len(started | results.keys())) > 0:
        outcome.remarks.append(f"{not_run} of {selected} tests did not run")


def sanitize(run: Run, tool: str, seconds: float) -> Outcome:
    """Run a tool of compute-sanitizer on small inputs of every operator."""
    name = f"compute-sanitizer {tool}"
    if not run.gpu:
        return run.skip(name, "no CUDA device")
    folders = (os.environ.get("PATH", ""), "/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
    program = shutil.which("compute-sanitizer", path=os.pathsep.join(folders))
    if program is None:
        return run.skip(name, "compute-sanitizer is not installed")
    log = run.scratch / f"{tool}.log"
    options = ["--tool", tool, "--kernel-name", "kns=fcos_fast", "--log-file", log]
    options += ["--report-api-errors", "no", "--require-cuda-init", "no"]

    def read(outcome: Outcome) -> None:
        run.log.write(text := log.read_text(errors="replace") if log.exists() else "")
        count_reports(text, outcome)

    command = [program, *options, sys.executable, "-m", "benchmarks.small", "cuda"]
    # Without the caching allocator every tensor has its own allocation, so out-of-bounds accesses are detected.
    outcome = run.step(name, seconds, command, read, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
    if any("Device not supported" in remark for remark in outcome.remarks):  # on some virtual machines
        outcome.verdict = "skipped"
    return outcome


def count_reports(text: str, outcome: Outcome) -> None:
    """Complete the outcome from the log of compute-sanitizer: only reports about our kernels are failures."""
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
            outcome.remarks.append(f"not about our kernels: {' '.join(on_device.split())[:200]}")
    if others:
        outcome.remarks.append(f"{others} reports that are not about our kernels; see the log")


if __name__ == "__main__":
    sys.exit(
        run_from_command_line(
            "tests.gpu_check", "Run all tests that need a GPU, and compute-sanitizer.", steps
        )
    )
