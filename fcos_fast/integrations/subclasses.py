"""Subclasses of torchvision's classes: which compute what these compute, and their accelerated classes."""

from __future__ import annotations

from functools import cache
from types import FunctionType
from typing import Any


def overridden(kind: type, base: type) -> list[str]:
    """Names of the functions of ``base`` for which its subclass ``kind`` has others, but for ``__init__``."""
    return sorted(
        name
        for name, value in vars(base).items()
        if isinstance(value, (FunctionType, staticmethod, classmethod, property))
        and name != "__init__"
        and _defined(kind, name) is not value
    )


def _defined(kind: type, name: str) -> Any:
    """What the first class of the method resolution order that defines ``name`` has there."""
    return next(vars(parent)[name] for parent in kind.__mro__ if name in vars(parent))


def accelerated_class(accelerated: type, original: type) -> type:
    """``accelerated``, or the subclass of it that also is the user's own subclass ``original``."""
    return accelerated if original in accelerated.__mro__ else _combined(accelerated, original)


@cache
def _combined(accelerated: type, original: type) -> type:
    def reduce(self: Any, protocol: int) -> tuple:
        # This class cannot be imported by a name, as pickle would; the two that it is made of can.
        _, (_, *arguments), *rest = super(kind, self).__reduce_ex__(max(2, protocol))
        return _new, (accelerated, original, *arguments), *rest

    names = {
        "__reduce_ex__": reduce,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
    }
    kind = type(original.__name__, (accelerated, original), names)
    return kind


def _new(accelerated: type, original: type, *arguments: Any) -> Any:
    kind = accelerated_class(accelerated, original)
    return kind.__new__(kind, *arguments)
