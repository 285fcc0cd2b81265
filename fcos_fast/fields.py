"""Dataclass fields that carry a rule for their values. Needs no torch.

Example::

    @dataclass(frozen=True)
    class Options:
        epochs: int = positive(50)
        dropout: float = between(0.1, 0, 1)

        def __post_init__(self) -> None:
            check_fields(self)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from fcos_fast.serialize import convert, field_types

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True)
class Rule:
    """What a value of the right type must fulfill, as a predicate and in words for the error message."""

    accepts: Callable[[Any], bool]
    expected: str


def checked(default: Any, accepts: Callable[[Any], bool], expected: str) -> Any:
    """A field with any :class:`Rule`."""
    return field(default=default, metadata={"rule": Rule(accepts, expected)})


def positive(default: float) -> Any:
    """A field for finite numbers above 0; an ``int`` default makes it one for integers."""
    kind = "integer" if isinstance(default, int) else "number"
    return checked(default, is_positive, f"a positive {kind}")


def at_least(default: float, low: float) -> Any:
    """A field for numbers from ``low`` on."""
    return checked(default, lambda value: value >= low, f"a number of at least {low}")


def between(default: float, low: float, high: float) -> Any:
    """A field for numbers from ``low`` to ``high``, both included."""
    return checked(default, lambda value: low <= value <= high, f"a number from {low} to {high}")


def multiple_of(default: int, divisor: int) -> Any:
    """A field for positive multiples of ``divisor``."""
    return checked(default, lambda n: n > 0 and n % divisor == 0, f"a positive multiple of {divisor}")


def is_positive(value: float) -> bool:
    """Whether the number is finite and above 0."""
    return 0 < value < math.inf


def check_fields(instance: DataclassInstance, prefix: str = "") -> None:
    """Check every field against its type hint and its rule. Lists, as YAML and JSON have, become tuples.

    Messages name the field after ``prefix``.

    Raises:
        TypeError: value of the wrong type.
        ValueError: value that breaks the field's rule or is not one of its ``Literal``.
    """
    hints = field_types(type(instance))
    for f in fields(instance):
        value, rule, name = getattr(instance, f.name), f.metadata.get("rule"), f"{prefix}{f.name}"
        try:
            value = convert(value, hints[f.name], name)
        except (TypeError, ValueError) as error:
            if rule is None:
                raise
            raise type(error)(_message(name, value, rule)) from error
        object.__setattr__(instance, f.name, value)  # the dataclass may be frozen
        if rule and not rule.accepts(value):
            raise ValueError(_message(name, value, rule))


def _message(name: str, value: object, rule: Rule) -> str:
    return f"{name}={value!r}; expected {rule.expected}"
