"""Fields with rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from fcos_fast.fields import at_least, between, check_fields, checked, multiple_of, positive


@dataclass(frozen=True)
class Options:
    count: int = positive(3)
    rate: float = positive(0.5)
    share: float = between(0.5, 0, 1)
    gamma: float = at_least(2.0, 0)
    channels: int = multiple_of(64, 32)
    sides: tuple[int, ...] = checked((1, 2), lambda sides: len(sides) > 0, "at least one side")
    plain: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


def test_valid_values():
    assert Options() == Options(3, 0.5, 0.5, 2.0, 64, (1, 2), False)
    assert Options(rate=1, share=0, gamma=0, sides=[3]) == Options(3, 1.0, 0.0, 0.0, 64, (3,))


@pytest.mark.parametrize(
    ("field", "value", "kind", "message"),
    [
        ("count", 0, ValueError, "count=0; expected a positive integer"),
        ("count", 1.5, TypeError, "count=1.5; expected a positive integer"),
        ("count", True, TypeError, "count=True; expected a positive integer"),
        ("rate", 0, ValueError, "rate=0; expected a positive number"),
        ("rate", float("inf"), ValueError, "rate=inf; expected a positive number"),
        ("share", 1.01, ValueError, "share=1.01; expected a number from 0 to 1"),
        ("share", float("nan"), ValueError, "share=nan; expected a number from 0 to 1"),
        ("gamma", -1, ValueError, "gamma=-1; expected a number of at least 0"),
        ("channels", 48, ValueError, "channels=48; expected a positive multiple of 32"),
        ("sides", (), ValueError, r"sides=\(\); expected at least one side"),
        ("sides", (1, "2"), TypeError, r"sides=\(1, '2'\); expected at least one side"),
        ("plain", 1, TypeError, "plain=1; expected True or False"),
    ],
)
def test_invalid_values(field: str, value: Any, kind: type[Exception], message: str):
    with pytest.raises(kind, match=message):
        Options(**{field: value})
