"""Every row of every case of a file, on every device that is there, as pytest-benchmark runs."""

from __future__ import annotations

import functools
import time

import pytest
import torch

from benchmarks.case import devices, prepare
from fcos_fast._extension import backend


def pytest_generate_tests(metafunc):
    if "time_row" not in metafunc.fixturenames:
        return
    metafunc.parametrize(
        ("case", "device", "row"),
        [
            pytest.param(
                case,
                device,
                row,
                id=f"{case.title}-{device}-{row}",
                marks=pytest.mark.benchmark(group=f"{case.name} on {device}"),
            )
            for case in metafunc.module.CASES
            for device in devices()
            for row in case.rows
        ],
    )


# The rows of a case come one after the other, and share its data and its peer's result.
prepare_once = functools.lru_cache(maxsize=1)(prepare)


@pytest.fixture
def time_row(benchmark, case, device, row):
    """A function that verifies the row, then times it; a slow row gets few rounds."""

    def call():
        prepared.calls[row]()
        if device == "cuda":
            torch.cuda.synchronize()

    def run():
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        benchmark.pedantic(call, rounds=min(100, max(2, int(1 / seconds))), warmup_rounds=int(seconds < 1))

    prepared = prepare_once(case, device)
    with backend("native"):
        prepared.verify(row)
        yield run
