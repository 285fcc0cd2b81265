"""Benchmark cases: a piece of work and the implementations that are compared."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.rows import FLOOR, OURS, graph_of

try:
    import torchvision
except ImportError:
    torchvision = None
"""None if it is not installed. Then its rows are missing, and the reference is the peer."""

PEERS = ("torchvision", "mmdetection", "openvino", "torch", "reference")
"""Rows that ours is compared with; the first that a case has."""


@dataclass(frozen=True, eq=False)
class Case:
    """A piece of work that every row (implementation) does on the same data.

    Attributes:
        operator: name of the operator and of the file.
        title: size and kind of the data.
        data: device -> arguments of every row; the same numbers each time.
        rows: name -> function of these arguments. ``fcos_fast`` is ours. Names that start with ``floor`` compute
            nothing but do the minimum that any implementation must do.
        check: (result, expected, data) -> None; raises AssertionError if a row's result differs from its peer's.
        synchronizes: our row synchronizes with the device, because the shape of its result depends on the data.
        peer_synchronizes: the peer synchronizes. Rows that synchronize cannot be captured in a CUDA graph.
        devices: devices on which the case is timed. Every case can be checked on any device.
        slow_on_cuda: rows that synchronize so often that they take seconds on a GPU; they are skipped there.
        bytes_moved: data -> total number of bytes that any implementation must read and write.
    """

    operator: str
    title: str
    data: Callable[[str], Sequence[Any]]
    rows: dict[str, Callable[..., Any]]
    check: Callable[[Any, Any, Sequence[Any]], None]
    synchronizes: bool = False
    peer_synchronizes: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")
    slow_on_cuda: tuple[str, ...] = ()
    bytes_moved: Callable[..., int] | None = None

    @property
    def name(self) -> str:
        """The operator and the title."""
        return f"{self.operator}: {self.title}"

    @property
    def peer(self) -> str:
        """The row that ours is compared with."""
        return next(name for name in PEERS if name in self.rows)

    def rows_on(self, device: str) -> list[str]:
        """Names of the rows; on a GPU, also ours and the peer as CUDA graphs (a single launch)."""
        if device != "cuda":
            return list(self.rows)
        rows = [row for row in self.rows if row not in self.slow_on_cuda or row == self.peer]
        return [*rows, *(graph_of(row) for row in self._captured())]

    def _captured(self) -> list[str]:
        return [OURS] * (not self.synchronizes) + [self.peer] * (not self.peer_synchronizes)


@dataclass(frozen=True)
class Prepared:
    """A case with data on a device.

    Attributes:
        data: arguments of every row.
        calls: row -> function without arguments.
        expected: the result of the peer.
    """

    case: Case
    device: str
    data: Sequence[Any]
    calls: dict[str, Callable[[], Any]]
    expected: Any

    @property
    def bytes_moved(self) -> int | None:
        """Number of bytes that any implementation must read and write; None if unknown."""
        return self.case.bytes_moved and self.case.bytes_moved(*self.data)

    def verify(self, row: str) -> None:
        """Compare the row's result with its peer's before it is timed."""
        if row.startswith(FLOOR) or row == self.case.peer:
            return
        try:
            self.case.check(self.calls[row](), self.expected, self.data)
        except AssertionError as error:
            raise AssertionError(
                f"{self.case.name} on {self.device}: {row} and {self.case.peer} differ: {error}"
            ) from error


def prepare(case: Case, device: str) -> Prepared:
    """Create the data and compute the peer's result."""
    torch.manual_seed(0)
    data = case.data(device)
    calls = {name: (lambda function=function: function(*data)) for name, function in case.rows.items()}
    for row in list(calls):
        if graph_of(row) in case.rows_on(device):
            calls[graph_of(row)] = Graph(calls[row])
    return Prepared(case, device, data, calls, calls[case.peer]())


def close(rtol: float, atol: float) -> Callable[[Any, Any, Sequence[Any]], None]:
    """A check that a result is close to its peer's."""
    return lambda result, expected, data: torch.testing.assert_close(result, expected, rtol=rtol, atol=atol)


def nbytes(*tensors: torch.Tensor) -> int:
    """Total size of the tensors in bytes."""
    return sum(t.numel() * t.element_size() for t in tensors)


class Graph:
    """A function that the first call captures in a CUDA graph, which every call replays."""

    def __init__(self, function: Callable[[], Any]):
        self.function = function
        self.graph = None

    def __call__(self) -> Any:
        """Returns the same tensors each time, with values computed from the current data."""
        if self.graph is None:
            self._capture()
        self.graph.replay()
        return self.result

    def _capture(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # warm up before capture
                self.function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.result = self.function()
        self.graph = graph


def all_cases() -> list[Case]:
    """The cases of all ``bench_<operator>.py``."""
    files = sorted(Path(__file__).parent.glob("bench_*.py"))
    return [case for file in files for case in importlib.import_module(f"benchmarks.{file.stem}").CASES]


def timed_on(device: str) -> list[Case]:
    """The cases that are timed on the device."""
    return [case for case in all_cases() if device in case.devices]


def loss_and_gradients(loss: Callable[..., torch.Tensor]) -> Callable[..., tuple[torch.Tensor, ...]]:
    """Forward and backward of a scalar loss, with gradients for all arguments that require one."""

    def forward_backward(*data):
        value = loss(*data)
        wanted = [t for t in data if t.requires_grad]
        return value.detach(), *torch.autograd.grad(value, wanted)

    return forward_backward
