"""The parts of gpu_check that decide what failed; the whole is rehearsed by ``make gpu-check``."""

from __future__ import annotations

import json
import sys

import pytest

from tests import gpu_check
from tests.child import assert_runs

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


@pytest.mark.parametrize(
    ("text", "failed", "remark"),
    [
        (CLEAN, 0, None),
        (OURS, 1, "Invalid __global__ write of size 4 bytes at void fcos_fast"),
        (OTHERS, 0, "1 reports about kernels of others"),
        (RACE, 1, "Race reported between Write access"),
    ],
)
def test_reports_of_compute_sanitizer_fail_where_they_are_about_ours(text, failed, remark):
    outcome = gpu_check.Outcome("memcheck")
    gpu_check.count_reports(text, outcome)
    assert outcome.failed == failed
    assert (remark in outcome.remarks[0]) if remark else not outcome.remarks


@pytest.fixture
def check(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_check, "TREE", tmp_path)
    check = gpu_check.Check(tmp_path, commit="", seconds=60)
    yield check
    check.log.close()


TESTS = """
import pytest
def test_right(): pass
def test_wrong(): assert 1 == 2
def test_absent(): pytest.skip("no such thing")
def test_broken(missing): pass
"""


def test_tests_are_counted_with_reasons(check, tmp_path):
    (tmp_path / "test_some.py").write_text(TESTS)
    (tmp_path / "test_none.py").write_text("import pytest\npytest.importorskip('no_such_module')")
    outcome = check.pytest("some", 60, str(tmp_path))
    assert (outcome.verdict, outcome.passed, outcome.failed) == ("failed", 1, 2)
    assert outcome.skipped == {
        "no such thing": 1,
        "could not import 'no_such_module': No module named 'no_such_module'": 1,
    }
    assert any("test_wrong: assert 1 == 2" in remark for remark in outcome.remarks)


def test_a_step_that_takes_too_long_is_stopped_and_hides_no_other(check):
    slow = check.step("slow", 5, [sys.executable, "-c", "import time; time.sleep(60)"])
    assert slow.verdict == "out of time"
    assert slow.seconds < 20
    assert check.step("next", 30, [sys.executable, "-c", ""]).verdict == "passed"
    assert check.step("wrong", 30, [sys.executable, "-c", "1 / 0"]).verdict == "failed"
    assert not gpu_check.report(check, {}, {})
    written = json.loads((check.out / "gpu-check.json").read_text())
    assert [step["verdict"] for step in written["steps"]] == ["out of time", "passed", "failed"]
    assert not written["ok"]


def test_everything_it_runs_can_be_collected_with_torch_numpy_pytest_and_hypothesis_alone():
    assert_runs(
        f"""
        import sys
        import pytest
        for name in ("torchvision", "PIL", "matplotlib", "yaml", "jsonargparse", "tqdm", "pycocotools", "expecttest"):
            sys.modules[name] = None  # importing it raises
        sys.exit(pytest.main(["--collect-only", "-q", "-p", "no:cacheprovider", *{gpu_check.TESTS!r}]))
        """
    )
