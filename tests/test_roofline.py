"""The arithmetic of the roofline, against figures that were worked out by hand."""

from __future__ import annotations

import pytest

from benchmarks.kernel_budget import KERNELS
from benchmarks.roofline import CARDS, NOTE, Card, binding, line
from tests.tree import ROOT

KERNEL = {kernel.what: kernel for kernel in KERNELS}
CARD = {card.name: card for card in CARDS}


def test_the_figures_of_detection_loss():
    """44 instructions for each of 28.7 million elements: 38 us of issue on 132 multiprocessors at 1.98 GHz."""
    kernel = KERNEL["detection_loss, NCHW"]
    h100, h200 = CARD["H100 SXM"], CARD["H200 SXM"]
    assert h100.issue_us(kernel) == pytest.approx(37.7, abs=0.1)
    assert kernel.bytes == pytest.approx(123.3e6, rel=1e-3)
    assert h100.memory_us(kernel) == pytest.approx(40.9, abs=0.1)
    assert h200.memory_us(kernel) == pytest.approx(28.5, abs=0.1)
    assert h100.occupancy(kernel) == 0.5
    assert "bound by memory: at least 41 us" in line(h100, kernel)
    assert "bound by issue: at least 38 us" in line(h200, kernel)


def test_what_is_not_counted_does_not_bind():
    assert binding({"issue": None, "memory": 3.0, "launches": 4.0}) == "launches"
    assert "issue not counted" in line(CARDS[0], KERNEL["assign_targets, 20 boxes an image"])


def test_occupancy_goes_by_warps_and_whole_blocks():
    kernel = KERNEL["group_norm_relu, forward, NCHW"]
    assert Card("a", 1, 1, 1).occupancy(kernel) == 0.5  # 56 registers of 512 threads: two blocks of four
    assert Card("b", 1, 1, 1, threads=1536).occupancy(kernel) == pytest.approx(2 / 3)


def test_every_line_says_that_nothing_was_measured():
    lines = [line(card, kernel) for card in CARDS for kernel in KERNELS]
    assert all(text.endswith(NOTE) for text in lines)


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.what)
def test_every_row_names_a_kernel_of_its_file(kernel):
    source = (ROOT / kernel.source).read_text()
    assert f" {kernel.kernel}(" in source
