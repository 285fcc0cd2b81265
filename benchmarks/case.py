"""A piece of work, and the ways of doing it that are timed against one another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

try:
    import torchvision
except ImportError:
    torchvision = None
"""None where it is not installed; its rows are then missing, and the reference is the peer."""

OURS = "fcos_fast"
FLOOR = "floor"
COMPILED = "torch.compile"


@dataclass(frozen=True, eq=False)
class Case:
    """Work that every row does on the same data.

    Attributes:
        operator: name of the operator, which is that of its file.
        title: size and kind of the data.
        data: device -> the arguments of every row, the same numbers each time.
        rows: name -> function of these arguments. ``fcos_fast`` is ours. Names that begin with ``floor`` are the least
            that any implementation must do, and compute nothing.
        check: (result, expected) -> None; raises AssertionError where a row's result is not its peer's.
    """

    operator: str
    title: str
    data: Callable[[str], Sequence[Any]]
    rows: dict[str, Callable[..., Any]]
    check: Callable[[Any, Any], None] = torch.testing.assert_close

    @property
    def name(self) -> str:
        """Operator and title."""
        return f"{self.operator}: {self.title}"

    @property
    def peer(self) -> str:
        """The row that ours is compared with."""
        return "torchvision" if "torchvision" in self.rows else "reference"


@dataclass(frozen=True)
class Prepared:
    """A case on a device.

    Attributes:
        calls: row -> function without arguments.
        expected: result of the peer.
    """

    case: Case
    device: str
    calls: dict[str, Callable[[], Any]]
    expected: Any

    def verify(self, row: str) -> None:
        """Compare the row's result with its peer's: a timing of a wrong result is worth nothing."""
        if row.startswith(FLOOR) or row == self.case.peer:
            return
        try:
            self.case.check(self.calls[row](), self.expected)
        except AssertionError as error:
            raise AssertionError(
                f"{self.case.name} on {self.device}: {row} and {self.case.peer} differ: {error}"
            ) from error


def prepare(case: Case, device: str) -> Prepared:
    """Make the data and the peer's result."""
    torch.manual_seed(0)
    data = case.data(device)
    calls = {name: (lambda function=function: function(*data)) for name, function in case.rows.items()}
    return Prepared(case, device, calls, calls[case.peer]())


def devices() -> list[str]:
    """``cpu``, and ``cuda`` where a GPU is."""
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def loss_and_gradients(loss: Callable[..., torch.Tensor]) -> Callable[..., tuple[torch.Tensor, ...]]:
    """Forward and backward of a scalar loss, for those of its arguments that want a gradient."""

    def forward_backward(*data):
        value = loss(*data)
        wanted = [t for t in data if t.requires_grad]
        return value.detach(), *torch.autograd.grad(value, wanted)

    return forward_backward
