"""Properties of every operator, tested on the first case of its benchmark. New ``bench_*.py`` files are included."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor

from benchmarks.case import Case, Graph, all_cases, prepare
from benchmarks.rows import OURS
from fcos_fast import backend
from tests.ops.arguments import tensors_in

CASES = list({case.operator: case for case in reversed(all_cases())}.values())[::-1]
ASYNCHRONOUS = [case for case in CASES if not case.synchronizes]


def each(cases):
    return pytest.mark.parametrize("case", cases, ids=[case.operator for case in cases])


@pytest.fixture(autouse=True)
def _native(monkeypatch):
    monkeypatch.delenv("FCOS_FAST_CHECK", raising=False)
    with backend("native"):
        yield


def make(case: Case, device: str, seed: int = 0):
    torch.manual_seed(seed)
    return case.data(device)


def run(case: Case, data) -> list[Tensor]:
    """All tensors in the result."""
    return tensors_in(case.rows[OURS](*data))


@torch.no_grad()
def overwrite(data, new) -> None:
    for old, value in zip(tensors_in(data), tensors_in(new), strict=True):
        old.copy_(value)


def assert_same_bits(actual: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@each(CASES)
def test_equals_its_peer(case, device):
    prepare(case, device).verify(OURS)


@each(CASES)
def test_the_same_bits_a_hundred_times(case, device):
    data = make(case, device)
    first = [t.clone() for t in run(case, data)]
    for _ in range(99):
        assert_same_bits(run(case, data), first)


@contextlib.contextmanager
def poisoned_memory():
    """Fill uninitialized memory with NaN, or the greatest integer."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        assert torch.empty(1).isnan()
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = before
        torch.use_deterministic_algorithms(False)


@each(CASES)
def test_reads_and_returns_nothing_uninitialized(case, device):
    data = make(case, device)
    expected = run(case, data)
    with poisoned_memory():
        assert_same_bits(run(case, data), expected)


@each(CASES)
def test_does_not_modify_its_arguments(case, device):
    data = make(case, device)
    before = [t.detach().clone() for t in tensors_in(data)]
    run(case, data)
    assert_same_bits([t.detach() for t in tensors_in(data)], before)


@pytest.mark.gpu
@each(ASYNCHRONOUS)
def test_never_synchronizes(case):
    data = make(case, "cuda")
    run(case, data)
    torch.cuda.set_sync_debug_mode("error")
    try:
        run(case, data)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@each(ASYNCHRONOUS)
def test_a_captured_graph_computes_from_new_data(case):
    data, new = make(case, "cuda", seed=0), make(case, "cuda", seed=1)
    graph = Graph(lambda: case.rows[OURS](*data))
    graph()
    overwrite(data, new)
    assert_same_bits(tensors_in(graph()), run(case, new))


@pytest.mark.gpu
@each(CASES)
def test_runs_on_the_current_stream(case):
    data, new = make(case, "cuda", seed=0), make(case, "cuda", seed=1)
    expected = run(case, new)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # on another stream, the operator would not wait for the new data
        overwrite(data, new)
        actual = run(case, data)
    stream.synchronize()
    assert_same_bits(actual, expected)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs a second CUDA device")
@each(CASES)
def test_runs_on_the_device_of_its_tensors(case):
    expected = run(case, make(case, "cuda:0"))
    with torch.cuda.device(0):
        actual = run(case, make(case, "cuda:1"))
        assert torch.cuda.current_device() == 0
    assert {t.device.index for t in actual} == {1}
    assert_same_bits([t.cpu() for t in actual], [t.cpu() for t in expected])


@pytest.mark.gpu
@each(CASES)
def test_needs_at_most_twice_the_memory_of_inputs_and_outputs(case):
    data = make(case, "cuda")
    outputs = run(case, data)
    allowed = 2 * sum(t.numel() * t.element_size() for t in (*tensors_in(data), *outputs)) + 2**20
    del outputs
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run(case, data)
    assert torch.cuda.max_memory_allocated() - before <= allowed
