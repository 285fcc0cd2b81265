"""CUDA graphs: a function recorded once per key and replayed with new inputs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

WARM_UP = 3
"""Calls before a capture: what libraries set up and choose on first use must not be captured."""

Graph = TypeVar("Graph")


class GraphCache(Generic[Graph]):
    """One graph per key, up to a maximum: each graph keeps its memory.

    Args:
        max_graphs: maximum number of graphs.
        max_idle: if the cache is full, a graph that was not used in this many calls makes room for another. None: none
            does.
    """

    def __init__(self, max_graphs: int, max_idle: int | None = None) -> None:
        self.max_graphs, self.max_idle = max_graphs, max_idle
        self._graphs: dict[Hashable, Graph] = {}  # the least recently used first
        self._last_call: dict[Hashable, int] = {}
        self._calls = 0

    def find(self, key: Hashable, make: Callable[[], Graph]) -> Graph | None:
        """The graph of ``key``, made on its first call; None if the cache is full."""
        self._calls += 1
        if key not in self._graphs:
            self._drop_idle()
            if len(self._graphs) >= self.max_graphs:
                return None
            self._graphs[key] = make()
        self._graphs[key] = self._graphs.pop(key)
        self._last_call[key] = self._calls
        return self._graphs[key]

    def stop(self) -> None:
        """Make no more graphs."""
        self.max_graphs = len(self._graphs)

    def _drop_idle(self) -> None:
        if self.max_idle is None or len(self._graphs) < self.max_graphs:
            return
        oldest = next(iter(self._graphs))
        if self._calls - self._last_call[oldest] > self.max_idle:
            del self._graphs[oldest], self._last_call[oldest]


def capture(
    function: Callable[..., Any],
    inputs: Sequence[Tensor],
    stream: torch.cuda.Stream,
    pool: Any = None,
    warm_up: int = 0,
) -> Callable[..., Any]:
    """Record ``function(*inputs)`` as a CUDA graph.

    Args:
        function: reads its inputs and other memory on the device and never waits for the device. It must not keep the
            tensors that it is given.
        inputs: example inputs; they are copied.
        stream: stream to capture on.
        pool: memory pool shared with graphs that never run at the same time.
        warm_up: calls of ``function`` before the capture.

    Returns:
        A function of new inputs with the shapes of ``inputs``. It copies them into the graph, replays it on the current
        stream and returns the outputs of the capture, which the next call overwrites.

    Raises:
        RuntimeError: ``function`` cannot be captured.
    """
    static = [x.clone() for x in inputs]
    graph = torch.cuda.CUDAGraph()
    caller = torch.cuda.current_stream()
    stream.wait_stream(caller)
    with torch.cuda.stream(stream):
        for _ in range(warm_up):
            function(*static)
        # thread_local: the thread that pins memory continues meanwhile
        with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
            outputs = function(*static)
    caller.wait_stream(stream)

    def replay(*new: Tensor) -> Any:
        for own, other in zip(static, new, strict=True):
            own.copy_(other)
        graph.replay()
        return outputs

    return replay
