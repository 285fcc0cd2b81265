"""Dataclasses to plain Python values and back, for YAML, JSON and checkpoints. Needs no torch.

The values are checked against the type hints of the fields: ``bool``, ``int``, ``float``, ``str``, ``None``,
``Literal``, ``tuple``, unions of these, and nested dataclasses.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from fcos_fast.suggest import unknown_name

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

_WORDS = {bool: "True or False", int: "an integer", float: "a number", str: "a string", type(None): "None"}


def to_plain(instance: DataclassInstance) -> dict[str, Any]:
    """The fields of a dataclass as plain values: nested dataclasses as dicts, tuples as lists."""
    return {f.name: _plain(getattr(instance, f.name)) for f in fields(instance)}


def from_plain(cls: type[T], values: Mapping[str, Any]) -> T:
    """Inverse of :func:`to_plain`. Fields missing from ``values`` take their defaults.

    If ``cls`` has a class method ``class_for(values)``, the class that it returns is built instead: a base class
    chooses the subclass.

    Raises:
        ValueError: unknown field, with the nearest names; missing field without a default; value that is not one of a
            ``Literal``; list of the wrong length; anything that the class itself rejects.
        TypeError: value of the wrong type. The message has the dotted path of the field (``train.epochs``).
    """
    return _from_plain(cls, values, "")


def check_field_names(cls: type[DataclassInstance], names: Mapping[str, Any]) -> None:
    """Raise a ValueError with the nearest names unless all ``names`` are fields of the dataclass ``cls``."""
    known = [f.name for f in fields(cls)]
    for name in names:
        if name not in known:
            raise unknown_name(f"{cls.__name__} field", name, known)


def convert(value: Any, hint: Any, name: str) -> Any:
    """``value`` as the type hint wants it: lists as tuples, mappings as dataclasses.

    Raises:
        TypeError, ValueError: as :func:`from_plain`; ``name`` stands for the value in the message.
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        if value not in arguments:
            raise unknown_name(f"value of {name}", value, map(str, arguments))
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(value, hint, name)
    if origin is tuple and isinstance(value, (list, tuple)):
        return _convert_tuple(value, arguments, name)
    if is_dataclass(hint) and isinstance(value, Mapping):
        return _from_plain(hint, value, f"{name}.")
    accepted = (int, float) if hint is float else hint
    is_stray_bool = isinstance(value, bool) and hint in (int, float)  # bool is a subclass of int
    if hint is not Any and (not isinstance(value, origin or accepted) or is_stray_bool):
        raise TypeError(f"{name}={value!r}; expected {_describe(hint)}")
    return value


@cache
def field_types(cls: type[DataclassInstance]) -> dict[str, Any]:
    """Field name to type hint, evaluated."""
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)}


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return to_plain(value)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {key: _plain(v) for key, v in value.items()}
    return value


def _from_plain(cls: Any, values: Mapping[str, Any], prefix: str) -> Any:
    if not isinstance(values, Mapping):
        where = f"{prefix.removesuffix('.')}=" if prefix else ""
        raise TypeError(f"{where}{values!r}; expected {_describe(cls)}")
    if hasattr(cls, "class_for"):
        cls = cls.class_for(values)
    check_field_names(cls, values)
    for f in fields(cls):
        if f.name not in values and f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"{prefix}{f.name} is missing; {cls.__name__} needs it")
    hints = field_types(cls)
    return cls(**{name: convert(value, hints[name], f"{prefix}{name}") for name, value in values.items()})


def _convert_union(value: Any, hint: Any, name: str) -> Any:
    choices = [choice for choice in get_args(hint) if choice is not type(None)]
    if value is None and len(choices) < len(get_args(hint)):
        return None
    fitting = [choice for choice in choices if _has_kind(value, choice)]
    if not fitting:
        raise TypeError(f"{name}={value!r}; expected {_describe(hint)}")
    for choice in fitting[:-1]:
        try:
            return convert(value, choice, name)
        except (TypeError, ValueError):  # another member may fit
            continue
    return convert(value, fitting[-1], name)


def _has_kind(value: Any, hint: Any) -> bool:
    """Whether a member of a union is worth trying, so that an error inside a list or mapping is reported."""
    origin = get_origin(hint) or hint
    if isinstance(value, (list, tuple)):
        return origin is tuple
    if isinstance(value, Mapping):
        return is_dataclass(hint) or origin is dict
    return origin is not tuple


def _convert_tuple(
    value: list[Any] | tuple[Any, ...], arguments: tuple[Any, ...], name: str
) -> tuple[Any, ...]:
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = arguments[:1] * len(value)
    if len(value) != len(arguments):
        raise ValueError(f"{name}={value!r}; expected {len(arguments)} values")
    return tuple(
        convert(v, hint, f"{name}[{i}]") for i, (v, hint) in enumerate(zip(value, arguments, strict=True))
    )


def _describe(hint: Any) -> str:
    """The type in words: ``an integer or None``."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(map(_describe, arguments))
    if origin is tuple:
        return "a list" if arguments[-1] is Ellipsis else f"a list of {len(arguments)} values"
    if hint in _WORDS:
        return _WORDS[hint]
    name = getattr(hint, "__name__", str(hint))
    return f"a mapping of the fields of {name}" if is_dataclass(hint) else name
