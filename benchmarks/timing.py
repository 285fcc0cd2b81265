"""Interleaved timing of several calls, so that disturbances by other programs affect all of them equally."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch

Call = Callable[[], object]
Timer = Callable[[int], float]
"""Number of consecutive calls -> mean milliseconds per call."""

SAMPLE_MS = 1.0
"""On a CPU, shorter calls are repeated until a sample takes about this long."""

MOST_HOST_MS = 20.0
"""Upper bound of the host time that is hidden; longer calls may synchronize."""


def time_in_turns(
    rows: dict[str, Call], device: str, budget_ms: float, least: int = 3, most: int = 100
) -> dict[str, list[float]]:
    """Samples (milliseconds per call) of every row.

    Each row gets about as many samples as fit into ``budget_ms``, from ``least`` to ``most``. Rows with fewer samples
    skip rounds evenly over the whole run.
    """
    timers = {name: timer(call, device) for name, call in rows.items()}
    once = {name: warm_up(timer) for name, timer in timers.items()}
    calls = {name: 1 if device == "cuda" else max(1, round(SAMPLE_MS / once[name])) for name in rows}
    rounds = {name: min(most, max(least, int(budget_ms / (once[name] * calls[name])))) for name in rows}
    every = {name: max(rounds.values()) // rounds[name] for name in rows}
    samples = {name: [] for name in rows}
    for turn in range(max(rounds.values(), default=0)):
        for name, timer_of_row in timers.items():
            if turn % every[name] == 0:
                samples[name].append(timer_of_row(calls[name]))
    return samples


def timer(call: Call, device: str) -> Timer:
    """The timer for calls on this device."""
    if device == "cuda":
        return functools.partial(time_on_gpu, call, host_ms(call))
    return functools.partial(time_on_cpu, call)


def time_on_cpu(call: Call, calls: int) -> float:
    """Wall-clock time. Caches are not flushed."""
    start = time.perf_counter_ns()
    for _ in range(calls):
        call()
    return (time.perf_counter_ns() - start) / calls / 1e6


def time_on_gpu(call: Call, host: float, calls: int) -> float:
    """Time between two events on the stream, with a cold L2 cache.

    Reading a buffer evicts the cache; dirty lines would be written back during the measurement. Then the device sleeps
    while the host queues the call (``host`` milliseconds), so that only device time is measured. If the call
    synchronizes, the host time after that is included.
    """
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _larger_than_cache().sum()
    torch.cuda._sleep(int((calls * 1.5 * host + 0.1) * _cycles_per_ms()))
    begin.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / calls


def host_ms(call: Call) -> float:
    """Milliseconds that the host needs to queue a call, at most ``MOST_HOST_MS``."""
    took = 0.0
    for _ in range(2):  # the first call is a warm-up
        torch.cuda.synchronize()
        start = time.perf_counter_ns()
        call()
        took = (time.perf_counter_ns() - start) / 1e6
    torch.cuda.synchronize()
    return min(took, MOST_HOST_MS)


@functools.cache
def _larger_than_cache() -> torch.Tensor:
    """A buffer that fills the L2 cache."""
    size = torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return torch.zeros(size, dtype=torch.float32, device="cuda")  # four times its size in bytes


@functools.cache
def _cycles_per_ms() -> float:
    """Cycles per millisecond of ``torch.cuda._sleep``."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    cycles = 10_000_000
    for _ in range(2):  # the first is a warm-up
        begin.record()
        torch.cuda._sleep(cycles)
        end.record()
        end.synchronize()
    return cycles / begin.elapsed_time(end)


def warm_up(timer: Timer) -> float:
    """Milliseconds of a warm call; if the first call takes more than a second, it is used directly."""
    first = timer(1)
    return first if first > 1000 else max(min(timer(1) for _ in range(3)), 1e-4)


def copy_bandwidths() -> dict[str, float]:
    """Device -> GB/s of a copy, on every device of this machine."""
    return {device: round(copy_bandwidth(device), 1) for device in devices()}


def devices() -> list[str]:
    """``cpu``, and ``cuda`` if there is a GPU."""
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def copy_bandwidth(device: str) -> float:
    """GB/s (bytes read and written) of a copy larger than any cache: a bound for everything that touches memory."""
    source = torch.ones(2**31 if device == "cuda" else 2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    (samples,) = time_in_turns({"copy": lambda: target.copy_(source)}, device, 300).values()
    return 2 * source.numel() / (sorted(samples)[len(samples) // 2] * 1e6)
