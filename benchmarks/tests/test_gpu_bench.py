"""How gpu_bench handles rows that hang, crash, or have no time left.

A script replaces the measuring process; ``make gpu-bench`` rehearses the whole program.
"""

from __future__ import annotations

import json
import sys

import pytest
import torch

from benchmarks import gpu_bench, gpu_rows
from benchmarks.case import Case
from benchmarks.report import GPU_COLUMNS, all_rows, with_prediction
from benchmarks.rows import OURS
from tests import gpu_steps
from tests.tree import ROOT

SCRIPT = """
import json, os, sys, time
path, first, rows = sys.argv[1], int(sys.argv[sys.argv.index("--first") + 1]), json.loads(ROWS)
file = open(path, "a")
def write(line):
    file.write(json.dumps(line) + "\\n")
    file.flush()
def row(i):
    return {"operator": "nms", "case": "5 boxes", "peer": "torchvision", "row": rows[i][0]}
if first == 0:
    write({"plan": [row(i) | {"seconds": LIMIT} for i in range(len(rows))], "skipped": 0, "copy": {"cuda": 4000.0}})
for i in range(first, len(rows)):
    write({"started": i})
    kind = rows[i][1]
    if kind == "hangs":
        time.sleep(60)
    if kind == "dies":
        print("Segmentation fault: here", flush=True)
        os._exit(139)
    if kind == "wrong":
        write({"job": i, "result": row(i) | {"device": "cuda", "error": "AssertionError: differ"}})
        continue
    time.sleep(0.3)
    write({"job": i, "result": row(i) | {"device": "cuda", "p20_ms": 1.0, "p50_ms": 2.0, "p80_ms": 3.0}})
    if kind == "breaks":
        sys.exit("out of memory")
write({"end": True})
"""


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """A function that measures fake rows within some seconds."""
    monkeypatch.setattr(gpu_steps, "TREE", ROOT)
    monkeypatch.setattr(gpu_steps, "PATIENCE", 1)

    def measure(rows, limit=3, seconds=gpu_steps.SECONDS) -> tuple[gpu_steps.Outcome, dict]:
        script = tmp_path / "script.py"
        script.write_text(SCRIPT.replace("ROWS", repr(json.dumps(rows))).replace("LIMIT", str(limit)))
        with gpu_steps.Run("gpu-bench", tmp_path / "out", seconds=gpu_steps.SECONDS) as run:
            run.seconds = seconds
            run.scaled = lambda wanted: wanted  # do not scale the limits of rows
            run.machine = {
                **{
                    "gpu": {"name": "Card", "driver_version": "1"},
                    "torch": "2",
                    "cuda": "13",
                    "commit": "abc",
                },
                "torchvision": "0",
            }
            outcome = gpu_bench.measure(run, [sys.executable, script])
        return outcome, json.loads((tmp_path / "out" / "gpu-bench.json").read_text())

    return measure


def test_a_failed_row_does_not_affect_others(measured):
    kinds = {"torchvision": "good", "a": "dies", "b": "hangs", "c": "breaks", OURS: "wrong", "e": "good"}
    rows = list(kinds.items())
    outcome, report = measured(rows)
    results = {result["row"]: result for result in report["benchmarks"]}
    assert list(results) == [name for name, _ in rows]
    assert results["a"]["error"] == "the process exited with 139; Segmentation fault: here"
    assert results["b"]["error"] == "stopped after 3 s"
    assert results["c"]["p50_ms"] == results["e"]["p50_ms"] == 2.0
    assert (outcome.verdict, outcome.passed, outcome.failed) == ("failed", 3, 1)
    assert outcome.skipped == {"failed rows that are not ours": 2}
    assert report["steps"][0]["remarks"] == outcome.remarks
    assert any("AssertionError: differ" in remark for remark in outcome.remarks)


def test_time_runs_out(measured):
    rows = [("torchvision", "good"), ("a", "good"), ("b", "hangs"), (OURS, "good")]
    outcome, report = measured(rows, limit=60, seconds=16)
    assert [result["row"] for result in report["benchmarks"]] == ["torchvision", "a"]
    assert (outcome.verdict, outcome.passed, outcome.failed) == ("passed", 2, 0)
    assert outcome.skipped == {"no time left": 2}
    outcome, _ = measured(rows[2:], limit=60, seconds=9)
    assert (outcome.verdict, outcome.passed) == ("out of time", 0)


def test_a_process_that_does_not_start_is_reported(measured, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "SCRIPT", "raise SystemExit('no torch here')")
    outcome, report = measured([])
    assert outcome.verdict == "failed"
    assert "no torch here" in outcome.remarks[0]
    assert not report["ok"]


def test_predicted_times():
    result = {
        "bytes": 8_000_000,
        "p50_ms": 4.0,
        "operator": "nms",
        "case": "x",
        "device": "cuda",
        "row": OURS,
    }
    result = with_prediction(result, copy_gb_per_s=4000.0)
    assert (result["gb_per_s"], result["predicted_ms"], result["share_of_prediction"]) == (2.0, 0.002, 0.0005)
    assert "| 2 | 0.002 | 0.0005 |" in all_rows([result], GPU_COLUMNS)
    failed = {key: result[key] for key in ("operator", "case", "device", "row")} | {
        "error": "RuntimeError: a | b"
    }
    assert "failed: RuntimeError: a / b" in all_rows([failed], GPU_COLUMNS)


def test_flagships_come_first_and_compiled_rows_last():
    jobs = gpu_rows.plan("cuda")
    names = list(dict.fromkeys(job.case.operator for job in jobs))
    assert names[:4] == list(gpu_rows.FLAGSHIPS)
    flagships = [
        job for job in jobs if "float32" not in job.case.title and job.case.operator in gpu_rows.FLAGSHIPS
    ]
    assert jobs[: len(flagships)] == flagships
    for some in (flagships, jobs[len(flagships) :]):
        compiled = [job.is_compiled for job in some]
        assert compiled == sorted(compiled)
    rows = {job.row for job in jobs}
    assert not any(job.row == "reference" for job in jobs if "nms" in job.case.operator)
    assert {
        f"{OURS} as CUDA graph",
        "torchvision as CUDA graph",
        f"{OURS}'s whole step as CUDA graph",
    } <= rows
    assert any("100,000" in job.case.title for job in jobs)


def job(row_functions, **options) -> gpu_rows.Job:
    case = Case(
        "some", "work", lambda device: (torch.ones(3),), row_functions, lambda a, b, data: None, **options
    )
    return [gpu_rows.Job(case, row) for row in row_functions]


def test_rows_are_written_one_by_one_with_their_bytes():
    lines = []
    jobs = job(
        {"torchvision": lambda x: x + 1, OURS: lambda x: 1 / 0, "floor: copy": lambda x: x.clone()},
        bytes_moved=lambda x: 24,
    )
    gpu_rows.run(list(jobs), "cpu", 0.001, 0, lines.append)
    assert [next(iter(line)) for line in lines] == ["started", "job"] * 3 + ["end"]
    results = [line["result"] for line in lines if "result" in line]
    assert [result.get("bytes") for result in results] == [24, 24, None]
    assert results[0]["times_faster_than_peer"] == 1
    assert results[1]["error"] == "ZeroDivisionError: division by zero"
    assert results[2]["p50_ms"] > 0
    assert list(jobs[0].case.rows) == ["torchvision"]  # the peer is needed until the end


def test_a_new_process_continues_after_finished_rows():
    lines = []
    gpu_rows.run(job({"torchvision": torch.clone, OURS: torch.clone}), "cpu", 0.001, 1, lines.append)
    assert [line for line in lines if "result" not in line] == [{"started": 1}, {"end": True}]


def test_if_data_cannot_be_created_all_rows_of_the_case_fail():
    def fail(x):
        raise RuntimeError("out of memory")

    lines = []
    with pytest.raises(RuntimeError, match="out of memory"):
        gpu_rows.run(
            job({"torchvision": fail, OURS: fail}) + job({"torch": torch.clone}),
            "cpu",
            0.001,
            0,
            lines.append,
        )
    assert [(line["job"], line["result"]["error"]) for line in lines if "job" in line] == [
        (0, "RuntimeError: out of memory"),
        (1, "RuntimeError: out of memory"),
    ]
