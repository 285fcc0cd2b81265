"""The roofline model, compared with manually computed figures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import kernel_work
from benchmarks.kernel_work import WORKS, Work
from benchmarks.roofline import CARDS, NOTE, Card, binding, line

WORK = {work.what: work for work in WORKS}
CARD = {card.name: card for card in CARDS}


@pytest.fixture
def work(monkeypatch):
    """28.7 million elements in one kernel with 44 instructions per element and 64 registers."""
    budget = replace(
        kernel_work.KERNELS[0], name="a", instructions_per_element=44, registers=64, threads=256, launches=2
    )
    monkeypatch.setitem(kernel_work.BUDGETS, "a", budget)
    return Work("a", ("a",), kernel_work.LOGITS, 4.3)


def test_the_figures_of_a_kernel(work):
    """38 us of issue time on 132 multiprocessors at 1.98 GHz."""
    h100, h200 = CARD["H100 SXM"], CARD["H200 SXM"]
    assert h100.issue_us(work) == pytest.approx(37.7, abs=0.1)
    assert work.bytes == pytest.approx(123.3e6, rel=1e-3)
    assert h100.memory_us(work) == pytest.approx(40.9, abs=0.1)
    assert h200.memory_us(work) == pytest.approx(28.5, abs=0.1)
    assert h100.occupancy(work) == 0.5
    assert "bound by memory: at least 41 us" in line(h100, work)
    assert "bound by issue: at least 38 us" in line(h200, work)


def test_uncounted_instructions_do_not_bind():
    assert binding({"issue": None, "memory": 3.0, "launches": 4.0}) == "launches"
    assert "issue not counted" in line(CARDS[0], WORK["assign_targets, 20 boxes an image"])


def test_occupancy_goes_by_warps_and_whole_blocks(work, monkeypatch):
    budget = replace(kernel_work.BUDGETS["a"], registers=54, threads=512)
    monkeypatch.setitem(kernel_work.BUDGETS, "a", budget)
    assert Card("a", 1, 1, 1).occupancy(work) == 0.5  # 56 registers of 512 threads: two blocks of four
    assert Card("b", 1, 1, 1, threads=1536).occupancy(work) == pytest.approx(2 / 3)


def test_kernels_of_one_operator_are_added_up():
    work = WORK["group_norm_relu forward, NCHW"]
    assert work.instructions_per_element == sum(budget.instructions_per_element for budget in work.budgets)
    assert work.launches == 3


def test_every_line_says_that_nothing_was_measured():
    lines = [line(card, work) for card in CARDS for work in WORKS]
    assert all(text.endswith(NOTE) for text in lines)
