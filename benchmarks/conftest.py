"""Runs every row of every case on every available device with pytest-benchmark, and writes a table and a JSON file.

The rows of a case are timed together, interleaved, when the first of them runs. pytest-benchmark would time one row
after the other; it receives the samples through a fake clock.
"""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

from benchmarks.case import prepare, torchvision
from benchmarks.report import all_rows, result_of, write_json
from benchmarks.rows import OURS
from benchmarks.timing import copy_bandwidths, devices, time_in_turns
from fcos_fast._extension import backend
from tests.machine import machine


def pytest_addoption(parser):
    group = parser.getgroup("fcos_fast")
    group.addoption("--results", type=Path, help="JSON file to write")
    group.addoption(
        "--row-seconds", type=float, default=2.0, help="time per row, unless three samples take longer"
    )


def pytest_generate_tests(metafunc):
    if "time_row" in metafunc.fixturenames:
        rows = [
            pytest.param(
                case,
                device,
                row,
                id=f"{case.title}-{device}-{row}",
                marks=pytest.mark.benchmark(group=f"{case.name} on {device}", timer=CLOCK),
            )
            for case in metafunc.module.CASES
            for device in devices()
            if device in case.devices
            for row in case.rows_on(device)
        ]
        # not "device", which is a fixture of the tests with values of its own
        metafunc.parametrize(("case", "timed_on", "row"), rows)


class Clock:
    """A clock that only ``advance`` moves."""

    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def advance(self, seconds: float) -> None:
        self.seconds += seconds


CLOCK = Clock()


@functools.lru_cache(maxsize=1)  # the rows of a case are consecutive
def measure(case, device, rows, seconds) -> dict[str, list[float] | Exception]:
    """Row -> samples in milliseconds, or the error."""
    prepared = prepare(case, device)
    outcome, right = {}, {}
    for row in rows:
        try:
            prepared.verify(row)
            right[row] = prepared.calls[row]
        except Exception as error:  # measure the other rows anyway
            outcome[row] = error
    return outcome | time_in_turns(right, device, seconds * 1000)


@pytest.fixture
def time_row(request, benchmark, case, timed_on, row):
    """A function that compares the row's result with its peer's and times it."""

    def run():
        config = request.config
        with backend("native"):
            outcome = measure(case, timed_on, selected, config.getoption("--row-seconds"))
        config.stash[RESULTS].append(result_of(case, timed_on, row, outcome))
        if isinstance(outcome[row], Exception):
            raise outcome[row]
        samples = iter(outcome[row])
        benchmark.pedantic(lambda: CLOCK.advance(next(samples) / 1000), rounds=len(outcome[row]))

    chosen = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]
    selected = tuple(p["row"] for p in chosen if p.get("case") is case and p["timed_on"] == timed_on)
    return run


RESULTS = pytest.StashKey[list]()
MACHINE = pytest.StashKey[dict]()


def pytest_configure(config):
    config.stash[RESULTS] = []


def pytest_report_header():
    return (
        []
        if torchvision
        else "torchvision is not installed: its rows are missing, and the reference is the peer"
    )


def pytest_collection_finish(session):
    """Before the first row keeps the machine busy."""
    timed = any("time_row" in item.fixturenames for item in session.items)
    if timed and not session.config.option.collectonly:
        session.config.stash[MACHINE] = machine() | {"copy_gb_per_s": copy_bandwidths()}


def pytest_sessionfinish(session):
    path = session.config.getoption("--results")
    if path and MACHINE in session.config.stash:
        write_json(
            path,
            {
                "machine": session.config.stash[MACHINE],
                "row_seconds": session.config.getoption("--row-seconds"),
                "results": session.config.stash[RESULTS],
            },
        )


def pytest_terminal_summary(terminalreporter, config):
    if config.stash[RESULTS]:
        load = config.stash[MACHINE]["load"]
        terminalreporter.section(f"{OURS} beside its peers")
        terminalreporter.write_line(all_rows(config.stash[RESULTS]))
        if load > 0.5:
            terminalreporter.write_line(
                f"other programs kept {load:.1f} cores busy before the run: timings are unreliable"
            )
        if path := config.getoption("--results"):
            terminalreporter.write_line(f"written: {path}")
