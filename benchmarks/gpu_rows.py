"""Measures the rows of the GPU benchmarks, the most important first, and writes each result immediately.

``benchmarks.gpu_bench`` runs ``python -m benchmarks.gpu_rows FILE --first 0``, stops it when a row takes too long, and
restarts it after the row that ended the process. It appends JSON lines to FILE: the plan, a line when a row starts, and
its result.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.case import Case, Prepared, prepare, timed_on, torchvision
from benchmarks.report import result_of
from benchmarks.rows import COMPILED, FLOOR
from benchmarks.timing import copy_bandwidths, host_ms, time_in_turns
from fcos_fast._extension import backend

FLAGSHIPS = ("detection_loss", "postprocess", "nms", "training_step")
ORDER = (
    *FLAGSHIPS,
    "focal_loss",
    "group_norm_relu",
    "nms_padded",
    "batched_nms",
    "assign_targets",
    "match_anchors",
)
"""Operators in the order of measurement; others follow."""
SECONDS = {"row": 30, "step": 45, "compiled": 110}
"""Time limit of a row, including its data and compilation."""


@dataclass(frozen=True)
class Job:
    """A row of a case."""

    case: Case
    row: str

    @property
    def is_compiled(self) -> bool:
        """Whether it uses torch.compile, which is slow to start."""
        return self.row.startswith(COMPILED)

    def as_json(self) -> dict:
        """Its entry in the plan."""
        kind = "compiled" if self.is_compiled else "step" if self.case.operator == "training_step" else "row"
        return {
            "operator": self.case.operator,
            "case": self.case.title,
            "peer": self.case.peer,
            "row": self.row,
            "seconds": SECONDS[kind],
        }


def plan(device: str) -> list[Job]:
    """All jobs: flagships first, compiled rows last within each part; rows of a case stay together."""
    jobs = [Job(case, row) for case in [*timed_on(device), *steps(device)] for row in case.rows_on(device)]
    return sorted(jobs, key=_weight)


def steps(device: str) -> Iterator[Case]:
    """Whole training steps, only on a GPU."""
    if torchvision and device == "cuda":
        from benchmarks.models.bench_training_step import on_gpu

        yield from on_gpu()


def _weight(job: Job) -> tuple:
    operator = job.case.operator
    is_flagship = operator in FLAGSHIPS and (operator == "training_step" or "float32" not in job.case.title)
    return not is_flagship, job.is_compiled, ORDER.index(operator) if operator in ORDER else len(ORDER)


def rehearsal() -> list[Job]:
    """The first case of each operator on the CPU, without compiled rows."""
    first = {case.operator: case for case in reversed(timed_on("cpu"))}
    jobs = [Job(case, row) for case in reversed(first.values()) for row in case.rows_on("cpu")]
    return sorted((job for job in jobs if not job.is_compiled), key=_weight)


def measure(prepared: Prepared, row: str, seconds: float) -> dict:
    """Compare the row's result with its peer's, time both interleaved, and return the JSON of the row."""
    case, device = prepared.case, prepared.device
    facts: dict = {}
    try:
        prepared.verify(row)
        calls = {name: prepared.calls[name] for name in {case.peer: 0, row: 0}}
        outcome = time_in_turns(calls, device, seconds * 1000)
        if device == "cuda":
            facts["host_ms"] = host_ms(calls[row])
    except Exception as error:
        outcome = {row: error}
    if not row.startswith(FLOOR):
        facts["bytes"] = prepared.bytes_moved
    return result_of(case, device, row, outcome) | facts


def run(jobs: list[Job], device: str, seconds: float, first: int, write) -> None:
    """Measure all jobs starting at ``first``."""
    prepared = None
    for index, job in enumerate(jobs):
        jobs[index] = None  # the last row of a case frees its data
        if index < first:
            continue
        write({"started": index})
        if prepared is None or prepared.case is not job.case:
            prepared = None
            gc.collect()
            if device == "cuda":
                torch.cuda.empty_cache()
            try:
                prepared = prepare(job.case, device)
            except Exception as error:
                for later in (job, *jobs[index + 1 :]):
                    if later.case is not job.case:
                        break
                    write(
                        {"job": index, "result": result_of(job.case, device, later.row, {later.row: error})}
                    )
                    index += 1
                raise
        result = measure(prepared, job.row, seconds)
        write({"job": index, "result": result})
        if job.row != job.case.peer:
            forget(prepared, job.row)
        if device == "cuda" and not result.get("error", "AssertionError").startswith("AssertionError"):
            # Out of memory, a failed capture, a broken CUDA context: continue in a new process.
            sys.exit(f"{job.row}: {result['error']}")
    write({"end": True})


def forget(prepared: Prepared, row: str) -> None:
    """Free the memory of a row, such as the model and CUDA graph of a training step."""
    prepared.calls.pop(row, None)
    prepared.case.rows.pop(row, None)
    if prepared.device == "cuda" and prepared.case.operator == "training_step":
        gc.collect()
        torch.cuda.empty_cache()


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--first", type=int, default=0, help="first job of the plan")
    parser.add_argument("--row-seconds", type=float, default=0.15)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="cpu is a rehearsal")
    options = parser.parse_args()
    device = options.device
    jobs = plan("cuda") if device == "cuda" else rehearsal()
    with options.file.open("a") as file, backend("native"):

        def write(line: dict) -> None:
            file.write(json.dumps(line) + "\n")
            file.flush()

        if options.first == 0:
            skipped = 0 if device == "cuda" else len(plan("cuda"))
            write({"plan": [job.as_json() for job in jobs], "skipped": skipped, "copy": copy_bandwidths()})
        run(jobs, device, options.row_seconds, options.first, write)


if __name__ == "__main__":
    main()
