"""Times of several calls, taken in turns, so that whatever else the machine does meets all of them alike."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch

SAMPLE_MS = 1.0
"""On a CPU a sample of a shorter call is the mean of as many calls as take about this long."""


def time_in_turns(
    rows: dict[str, Callable[[], object]], device: str, budget_ms: float, least: int = 3, most: int = 100
) -> dict[str, list[float]]:
    """Milliseconds per call, sample by sample, for every row.

    Each row gets about as many samples as fit into ``budget_ms``, from ``least`` to ``most``; a row of fewer samples
    sits rounds out, evenly over the whole run.
    """
    time_calls = time_on_gpu if device == "cuda" else time_on_cpu
    once = {name: warm_up(call, time_calls) for name, call in rows.items()}
    calls = {name: 1 if device == "cuda" else max(1, round(SAMPLE_MS / once[name])) for name in rows}
    rounds = {name: min(most, max(least, int(budget_ms / (once[name] * calls[name])))) for name in rows}
    every = {name: max(rounds.values()) // rounds[name] for name in rows}
    samples = {name: [] for name in rows}
    for turn in range(max(rounds.values(), default=0)):
        for name, call in rows.items():
            if turn % every[name] == 0:
                samples[name].append(time_calls(call, calls[name]))
    return samples


def time_on_cpu(call: Callable[[], object], calls: int) -> float:
    """Mean milliseconds of ``calls`` calls in a row, by the clock. Caches are not flushed."""
    start = time.perf_counter_ns()
    for _ in range(calls):
        call()
    return (time.perf_counter_ns() - start) / calls / 1e6


def time_on_gpu(call: Callable[[], object], calls: int = 1) -> float:
    """Mean milliseconds of a call between two events on the stream, from a level-2 cache without its data.

    The host prepares the call while the GPU still clears the cache, so that what is measured is the device's time; a
    host that takes longer than that is in the time.
    """
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    larger_than_cache().zero_()
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / calls


@functools.cache
def larger_than_cache() -> torch.Tensor:
    """A buffer whose writing leaves nothing else in the level-2 cache."""
    size = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return torch.empty(4 * size, dtype=torch.uint8, device="cuda")


def warm_up(call: Callable[[], object], time_calls: Callable[[Callable[[], object], int], float]) -> float:
    """Milliseconds of a warm call; a slow first one (more than a second) is taken as it is."""
    first = time_calls(call, 1)
    return first if first > 1000 else max(min(time_calls(call, 1) for _ in range(3)), 1e-4)


def copy_bandwidth(device: str) -> float:
    """GB/s of a copy that no cache holds, bytes read and bytes written: the floor of whatever must touch memory."""
    source = torch.ones(2**31 if device == "cuda" else 2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    (samples,) = time_in_turns({"copy": lambda: target.copy_(source)}, device, 300).values()
    return 2 * source.numel() / (sorted(samples)[len(samples) // 2] * 1e6)
