"""User subclasses of torchvision's classes: what they override, and their accelerated classes."""

from __future__ import annotations

from functools import cache
from types import FunctionType
from typing import Any


def overridden(kind: type, base: type) -> list[str]:
    """Names of the methods and properties of ``base`` that its subclass ``kind`` overrides, except ``__init__``."""
    return sorted(
        name
        for name, value in vars(base).items()
        if isinstance(value, (FunctionType, staticmethod, classmethod, property))
        and name != "__init__"
        and _defined(kind, name) is not value
    )


def _defined(kind: type, name: str) -> Any:
    """The attribute ``name`` as the first class in the method resolution order defines it, unbound."""
    return next(vars(parent)[name] for parent in kind.__mro__ if name in vars(parent))


def accelerated_class(accelerated: type, original: type) -> type:
    """``accelerated``, or a class that inherits from it and from the user's subclass ``original``."""
    return accelerated if original in accelerated.__mro__ else _combined(accelerated, original)


@cache
def _combined(accelerated: type, original: type) -> type:
    def reduce(self: Any, protocol: int) -> tuple[Any, ...]:
        # Pickle cannot import this class by name, but its two bases.
        _, (_, *arguments), *rest = super(kind, self).__reduce_ex__(max(2, protocol))  # type: ignore[arg-type]  # a class
        return _new, (accelerated, original, *arguments), *rest

    names = {
        "__reduce_ex__": reduce,
        "__module__": original.__module__,
        "__qualname__": original.__qualname__,
        "__doc__": original.__doc__,
    }
    kind = type(original.__name__, (accelerated, original), names)  # named, because ``reduce`` refers to it
    return kind


def _new(accelerated: type, original: type, *arguments: Any) -> Any:
    kind = accelerated_class(accelerated, original)
    return kind.__new__(kind, *arguments)
