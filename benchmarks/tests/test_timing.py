"""The order of events in a GPU timing; a mock of torch.cuda records them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from benchmarks import timing


class Buffer:
    """Records calls of its methods."""

    def __init__(self, told: list[str]):
        self.told = told

    def __getattr__(self, name):
        return lambda: self.told.append(f"cache.{name}")


@pytest.fixture
def told(monkeypatch) -> list[str]:
    told: list[str] = []

    class Event:
        def __init__(self, enable_timing):
            pass

        def record(self):
            told.append("record")

        def synchronize(self):
            told.append("wait")

        def elapsed_time(self, end):
            return 6.0

    cuda = SimpleNamespace(
        Event=Event,
        _sleep=lambda cycles: told.append(f"sleep {cycles}"),
        synchronize=lambda: told.append("wait"),
    )
    monkeypatch.setattr(timing, "torch", SimpleNamespace(cuda=cuda, Tensor=torch.Tensor))
    monkeypatch.setattr(timing, "_larger_than_cache", lambda: Buffer(told))
    monkeypatch.setattr(timing, "_cycles_per_ms", lambda: 1000.0)
    return told


def test_the_cache_is_filled_and_the_host_time_hidden_before_the_first_event(told):
    milliseconds = timing.time_on_gpu(lambda: told.append("call"), host=2.0, calls=2)
    assert told == ["cache.sum", "sleep 6100", "record", "call", "call", "record", "wait"]
    assert milliseconds == 3.0


def test_the_host_time_is_bounded(told, monkeypatch):
    now = iter([0, 99e6, 100e6, 103e6, 200e6, 299e6, 300e6, 399e6])
    monkeypatch.setattr(timing.time, "perf_counter_ns", lambda: next(now))
    assert timing.host_ms(lambda: None) == 3.0  # the first call is not counted
    assert timing.host_ms(lambda: None) == timing.MOST_HOST_MS


def test_each_row_is_timed_by_its_own_timer(monkeypatch):
    timers = {"slow": 50.0, "fast": 10.0}
    monkeypatch.setattr(timing, "timer", lambda call, device: lambda calls: timers[call()])
    samples = timing.time_in_turns({name: lambda name=name: name for name in timers}, "cuda", 300)
    assert {name: (len(times), set(times)) for name, times in samples.items()} == {
        "slow": (6, {50.0}),
        "fast": (30, {10.0}),
    }
