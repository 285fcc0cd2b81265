"""A piece of work, and the ways of doing it that are timed against one another."""

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
"""None where it is not installed; its rows are then missing, and the reference is the peer."""


@dataclass(frozen=True, eq=False)
class Case:
    """Work that every row does on the same data.

    Attributes:
        operator: name of the operator, which is that of its file.
        title: size and kind of the data.
        data: device -> the arguments of every row, the same numbers each time.
        rows: name -> function of these arguments. ``fcos_fast`` is ours. Names that begin with ``floor`` are the least
            that any implementation must do, and compute nothing.
        check: (result, expected, data) -> None; raises AssertionError where a row's result is not its peer's.
        waits: ours waits for the device, because the size of its result is data.
        peer_waits: so does the peer. What waits cannot be captured as a CUDA graph.
        devices: where it is timed. Any case can be checked on any device.
        slow_on_cuda: rows that wait so often that they take seconds on a GPU; they are left out there.
        bytes_moved: data -> bytes that any implementation must read from and write to memory, in all.
    """

    operator: str
    title: str
    data: Callable[[str], Sequence[Any]]
    rows: dict[str, Callable[..., Any]]
    check: Callable[[Any, Any, Sequence[Any]], None]
    waits: bool = False
    peer_waits: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")
    slow_on_cuda: tuple[str, ...] = ()
    bytes_moved: Callable[..., int] | None = None

    @property
    def name(self) -> str:
        """Operator and title."""
        return f"{self.operator}: {self.title}"

    @property
    def peer(self) -> str:
        """The row that ours is compared with."""
        return next(name for name in ("torchvision", "torch", "reference") if name in self.rows)

    def rows_on(self, device: str) -> list[str]:
        """Names of the rows; on a GPU ours and the peer also as CUDA graphs, which cost the host one launch."""
        if device != "cuda":
            return list(self.rows)
        rows = [row for row in self.rows if row not in self.slow_on_cuda or row == self.peer]
        return [*rows, *(graph_of(row) for row in self._captured())]

    def _captured(self) -> list[str]:
        return [OURS] * (not self.waits) + [self.peer] * (not self.peer_waits)


@dataclass(frozen=True)
class Prepared:
    """A case on a device.

    Attributes:
        data: the arguments of every row.
        calls: row -> function without arguments.
        expected: result of the peer.
    """

    case: Case
    device: str
    data: Sequence[Any]
    calls: dict[str, Callable[[], Any]]
    expected: Any

    @property
    def bytes_moved(self) -> int | None:
        """Bytes that any implementation must read and write; None where that is not known."""
        return self.case.bytes_moved and self.case.bytes_moved(*self.data)

    def verify(self, row: str) -> None:
        """Compare the row's result with its peer's: a timing of a wrong result is worth nothing."""
        if row.startswith(FLOOR) or row == self.case.peer:
            return
        try:
            self.case.check(self.calls[row](), self.expected, self.data)
        except AssertionError as error:
            raise AssertionError(
                f"{self.case.name} on {self.device}: {row} and {self.case.peer} differ: {error}"
            ) from error


def prepare(case: Case, device: str) -> Prepared:
    """Make the data and the peer's result."""
    torch.manual_seed(0)
    data = case.data(device)
    calls = {name: (lambda function=function: function(*data)) for name, function in case.rows.items()}
    for row in list(calls):
        if graph_of(row) in case.rows_on(device):
            calls[graph_of(row)] = Graph(calls[row])
    return Prepared(case, device, data, calls, calls[case.peer]())


def close(rtol: float, atol: float) -> Callable[[Any, Any, Sequence[Any]], None]:
    """A check that all numbers of a result are near its peer's."""
    return lambda result, expected, data: torch.testing.assert_close(result, expected, rtol=rtol, atol=atol)


def nbytes(*tensors: torch.Tensor) -> int:
    """Of all tensors together."""
    return sum(t.numel() * t.element_size() for t in tensors)


class Graph:
    """A function whose kernels are captured by the first call, and replayed by it and every later one."""

    def __init__(self, function: Callable[[], Any]):
        self.function = function
        self.graph = None

    def __call__(self) -> Any:
        """The same tensors each time, with the values that follow from what the function's data holds now."""
        if self.graph is None:
            self._capture()
        self.graph.replay()
        return self.result

    def _capture(self) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):  # whatever sets itself up does so before it is captured
                self.function()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.result = self.function()
        self.graph = graph


def all_cases() -> list[Case]:
    """Those of every ``bench_<operator>.py``."""
    files = sorted(Path(__file__).parent.glob("bench_*.py"))
    return [case for file in files for case in importlib.import_module(f"benchmarks.{file.stem}").CASES]


def timed_on(device: str) -> list[Case]:
    """The cases that are timed there."""
    return [case for case in all_cases() if device in case.devices]


def loss_and_gradients(loss: Callable[..., torch.Tensor]) -> Callable[..., tuple[torch.Tensor, ...]]:
    """Forward and backward of a scalar loss, for those of its arguments that want a gradient."""

    def forward_backward(*data):
        value = loss(*data)
        wanted = [t for t in data if t.requires_grad]
        return value.detach(), *torch.autograd.grad(value, wanted)

    return forward_backward
