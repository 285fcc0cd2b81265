"""Times of several calls, taken in turns, so that whatever else the machine does meets all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

SAMPLE_MS = 1.0
"""A sample of a shorter call is the mean of as many calls as take about this long."""


def time_calls(call: Callable[[], object], calls: int, device: str) -> float:
    """Mean milliseconds of ``calls`` calls in a row: by the clock on the CPU, by events on the stream on a GPU."""
    if device == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / calls
    start = time.perf_counter_ns()
    for _ in range(calls):
        call()
    return (time.perf_counter_ns() - start) / calls / 1e6


def time_in_turns(
    rows: dict[str, Callable[[], object]], device: str, budget_ms: float, least: int, most: int
) -> dict[str, list[float]]:
    """Milliseconds per call, sample by sample, for every row.

    Each row gets about as many samples as fit into ``budget_ms``, from ``least`` to ``most``; a row of fewer samples
    sits rounds out, evenly over the whole run. Nothing flushes a cache between calls.
    """
    once = {name: warm_up(call, device) for name, call in rows.items()}
    calls = {name: max(1, round(SAMPLE_MS / once[name])) for name in rows}
    rounds = {name: min(most, max(least, int(budget_ms / (once[name] * calls[name])))) for name in rows}
    every = {name: max(rounds.values()) // rounds[name] for name in rows}
    samples = {name: [] for name in rows}
    for turn in range(max(rounds.values())):
        for name, call in rows.items():
            if turn % every[name] == 0:
                samples[name].append(time_calls(call, calls[name], device))
    return samples


def warm_up(call: Callable[[], object], device: str) -> float:
    """Milliseconds of the second call; a slow first one (more than a second) is taken as it is."""
    first = time_calls(call, 1, device)
    return first if first > 1000 else max(time_calls(call, 1, device), 1e-4)
