"""A short fuzzing run with a fixed set of cases. ``make fuzz MINUTES=30`` searches for new ones."""

from collections import Counter

import pytest

from fcos_fast import _C, ops, reference
from tests.fuzz.__main__ import run
from tests.fuzz.operators import OPERATORS, run_case
from tests.fuzz.run import found_cases, search
from tests.test_simd import RUNNABLE


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_few_cases(operator):
    counts = Counter()
    assert search(operator, 25, None, counts) is None
    assert counts[operator] >= 20


def test_known_failures_pass():
    for operator, case in found_cases():
        run_case(operator, case)


@pytest.mark.parametrize("simd", [name for name in RUNNABLE if name != _C.simd()])
def test_other_instruction_sets(simd):
    done = run(simd, "--examples", "10")
    assert done.returncode == 0, done.stdout[-3000:]


def test_the_search_finds_a_wrong_operator(monkeypatch):
    """A bug that suppresses boxes exactly at the threshold must be detected."""
    monkeypatch.setattr(
        ops, "nms", lambda boxes, scores, threshold: reference.nms(boxes, scores, threshold - 1e-9)
    )
    assert search("nms", 100, None, Counter()) is not None
