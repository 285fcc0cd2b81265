"""Tests of how gpu_check counts failures; ``make gpu-check`` rehearses the whole program."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from tests import gpu_check, gpu_steps
from tests.child import assert_runs
from tests.tree import ROOT, package_environment

CLEAN = """\
========= COMPUTE-SANITIZER
========= ERROR SUMMARY: 0 errors
"""
OURS = """\
========= COMPUTE-SANITIZER
========= Invalid __global__ write of size 4 bytes
=========     at void fcos_fast::<unnamed>::centerness_kernel<float>(const T1 *, long, T1 *)+0x1b0
=========     by thread (1,0,0) in block (0,0,0)
=========     Access to 0x7f0000000004 is out of bounds
=========
========= ERROR SUMMARY: 1 error
"""
OTHERS = """\
========= COMPUTE-SANITIZER
========= Uninitialized __global__ memory read of size 4 bytes
=========     at void at::native::vectorized_elementwise_kernel<(int)4>(int)+0x70
=========     by thread (0,0,0) in block (0,0,0)
=========
========= ERROR SUMMARY: 1 error
"""
RACE = """\
========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at fcos_fast::block_sum(double)+0x80
=========     and Read access at fcos_fast::block_sum(double)+0xa0 [32 hazards]
=========
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)
"""
UNSUPPORTED = """\
========= COMPUTE-SANITIZER
========= Error: Device not supported. Please refer to the "Supported Devices" section of the documentation
=========
"""


@pytest.mark.parametrize(
    ("text", "failed", "remark"),
    [
        (CLEAN, 0, None),
        (OURS, 1, "Invalid __global__ write of size 4 bytes at void fcos_fast"),
        (OTHERS, 0, "not about our kernels: Uninitialized"),
        (RACE, 1, "Race reported between Write access"),
        (UNSUPPORTED, 0, "Device not supported"),
    ],
)
def test_only_reports_about_our_kernels_are_failures(text, failed, remark):
    outcome = gpu_steps.Outcome("memcheck")
    gpu_check.count_reports(text, outcome)
    assert outcome.failed == failed
    assert (remark in outcome.remarks[0]) if remark else not outcome.remarks


@pytest.mark.parametrize(
    ("text", "status", "verdict"),
    [(CLEAN, 0, "passed"), (OURS, 0, "failed"), (CLEAN, 1, "failed"), (UNSUPPORTED, 1, "skipped")],
)
def test_a_run_of_compute_sanitizer(run, tmp_path, monkeypatch, text, status, verdict):
    """With a fake compute-sanitizer that writes a log and exits."""
    (tmp_path / "text").write_text(text)
    program = tmp_path / "compute-sanitizer"
    program.write_text(
        f'#!/bin/sh\nwhile [ "$1" != --log-file ]; do shift; done\ncp {tmp_path}/text "$2"\nexit {status}\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert gpu_check.sanitize(run, "memcheck", 60).remarks == ["no CUDA device"]
    run.machine = {
        "gpu": {"name": "Card", "driver_version": "1"},
        "torch": "2",
        "cuda": "13",
        "commit": "abc",
    }
    assert gpu_check.sanitize(run, "memcheck", 60).verdict == verdict


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_steps, "TREE", ROOT)
    with gpu_steps.Run("gpu-check", tmp_path / "out", seconds=gpu_steps.SECONDS) as run:
        yield run


def written(run) -> dict:
    return json.loads((run.out / "gpu-check.json").read_text())


TESTS = """
import pytest
def test_right(): pass
def test_wrong(): assert 1 == 2
def test_absent(): pytest.skip("no such thing")
def test_broken(missing): pass
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_tests_are_counted_with_reasons(run, tmp_path, processes, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_none.py").write_text("import pytest\npytest.importorskip('no_such_module')")
    (tmp_path / "test_bad.py").write_text("import no_such_module")
    outcome = gpu_check.run_tests(run, "some", 60, "not gpu", [str(tmp_path)], processes)
    assert (outcome.verdict, outcome.passed, outcome.failed) == ("failed", 1, 3), outcome
    assert outcome.skipped == {
        "no such thing": 1,
        "could not import 'no_such_module': No module named 'no_such_module'": 1,
    }
    said = "\n".join(outcome.remarks)
    assert "test_wrong: assert 1 == 2" in said
    assert "test_bad.py: ModuleNotFoundError: No module named 'no_such_module'" in said
    assert "fixture 'missing' not found" in said


SLOW = """
import time
def test_first(): pass
def test_hangs(): time.sleep(60)
def test_last(): pass
"""


def test_stopped_tests_keep_known_outcomes(run, tmp_path):
    (tmp_path / "test_slow.py").write_text(SLOW)
    outcome = gpu_check.run_tests(run, "slow", 25, "not gpu", [str(tmp_path)])
    assert (outcome.verdict, outcome.passed, outcome.failed) == ("out of time", 1, 0), outcome
    assert any(remark.startswith("did not finish: ") and "test_hangs" in remark for remark in outcome.remarks)
    assert "1 of 3 tests did not run" in outcome.remarks


LOST = """
import os
import pytest
from tests import gpu_plugin
lost = []
gpu_plugin.context_is_lost = lambda: bool(lost)
def test_before(): pass
def test_breaks():
    lost.append(1)
    raise RuntimeError("an illegal memory access was encountered")
def test_after_1(): assert not lost
def test_after_2(): assert not lost
"""


def test_a_lost_context_fails_one_test(run, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    (tmp_path / "test_lost.py").write_text(LOST)
    outcome = gpu_check.run_tests(run, "lost", 60, "not gpu", [str(tmp_path)], processes=2)
    assert (outcome.passed, outcome.failed) == (3, 1), outcome
    assert "test_breaks: RuntimeError: an illegal memory access" in outcome.remarks[0]


def test_a_lost_context_stops_a_run_without_xdist(run, tmp_path):
    (tmp_path / "test_lost.py").write_text(LOST)
    outcome = gpu_check.run_tests(run, "lost", 60, "not gpu", [str(tmp_path)])
    assert (outcome.passed, outcome.failed) == (1, 1), outcome
    assert "2 of 4 tests did not run" in outcome.remarks


def test_a_folder_that_cannot_be_loaded_does_not_affect_others(run, tmp_path, monkeypatch):
    folders = [tmp_path / name for name in ("good", "bad")]
    for folder in folders:
        folder.mkdir()
        (folder / "test_some.py").write_text("import pytest\n@pytest.mark.gpu\ndef test_right(): pass")
    (folders[1] / "conftest.py").write_text("import no_such_module")
    monkeypatch.setattr(gpu_check, "TESTS", list(map(str, folders)))
    monkeypatch.setattr(gpu_check, "prepare", lambda run: True)
    monkeypatch.setattr(gpu_check, "sanitize", lambda *arguments: None)
    monkeypatch.setattr(gpu_check, "installed", lambda module: False)
    gpu_check.steps(run)
    assert [outcome.verdict for outcome in run.outcomes[:3]] == ["failed", "passed", "failed"]
    assert "no_such_module" in run.outcomes[2].remarks[0]


def test_a_step_that_takes_too_long_is_stopped_and_others_run(run):
    slow = run.step("slow", 5, [sys.executable, "-c", "import time; time.sleep(60)"])
    assert slow.verdict == "out of time"
    assert slow.seconds < 20
    assert [step["verdict"] for step in written(run)["steps"]] == ["out of time"]  # after every step
    assert run.step("next", 30, [sys.executable, "-c", ""]).verdict == "passed"
    assert run.step("wrong", 30, [sys.executable, "-c", "1 / 0"]).verdict == "failed"
    assert run.finish() == 1
    assert [step["verdict"] for step in written(run)["steps"]] == ["out of time", "passed", "failed"]
    assert "ZeroDivisionError: division by zero" in (run.out / "gpu-check.md").read_text()


def test_steps_share_the_remaining_time(tmp_path):
    """With a fake clock."""
    now = [0.0]
    with gpu_steps.Run("gpu-check", tmp_path, seconds=2 * gpu_steps.SECONDS, clock=lambda: now[0]) as run:
        assert run.share(100) == 200  # twice the total time is twice the time for each step
        now[0] = 2 * gpu_steps.SECONDS - 30
        assert run.share(100) == 30
        now[0] = 2 * gpu_steps.SECONDS - 3
        late = run.step("late", 100, ["never", "begun"])
        assert (late.verdict, late.remarks) == ("out of time", ["not started"])


def test_a_killed_run_has_written_its_steps(tmp_path):
    code = f"""
    import sys
    from pathlib import Path
    from tests import gpu_steps
    gpu_steps.TREE = gpu_steps.ROOT
    run = gpu_steps.Run("gpu-check", Path({str(tmp_path)!r}))
    run.step("first", 60, [sys.executable, "-c", ""])
    run.step("second", 60, [sys.executable, "-c", "import time; time.sleep(8)"])
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], env=package_environment(ROOT), cwd=ROOT
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "gpu-check.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [step["step"] for step in json.loads((tmp_path / "gpu-check.json").read_text())["steps"]] == [
        "first"
    ]


def test_gpu_check_finds_every_gpu_test():
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "--collect-only",
            "-q",
            "-p",
            "no:cacheprovider",
            "-m",
            "gpu",
            "tests",
            "benchmarks/tests",
        ],
        cwd=ROOT,
        env=package_environment(ROOT),
        capture_output=True,
        text=True,
    )
    files = {line.partition("::")[0] for line in done.stdout.splitlines() if "::" in line}
    assert {"tests/ops", "tests/engine", "tests/integrations", "tests/models"} <= {
        "/".join(file.split("/")[:2]) for file in files
    }
    covered = [ROOT / path for path in gpu_check.TESTS]
    assert not [file for file in files if not any((ROOT / file).is_relative_to(path) for path in covered)]


ALONE = {
    "torch, numpy, pytest and hypothesis": (
        ("torchvision", "PIL", "matplotlib", "yaml", "jsonargparse", "tqdm", "pycocotools", "expecttest"),
        [folder for folder in gpu_check.TESTS if folder != "tests/engine"],
    ),
    "common packages of a GPU machine": (
        ("jsonargparse", "pycocotools", "faster_coco_eval", "expecttest", "mmcv", "mmdet"),
        gpu_check.TESTS,
    ),
}


@pytest.mark.parametrize("what", ALONE)
def test_all_its_tests_can_be_collected_with(what):
    missing, folders = ALONE[what]
    assert_runs(
        f"""
        import sys
        import pytest
        for name in {missing!r}:
            sys.modules[name] = None  # importing it raises
        sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *{folders!r}]))
        """
    )
