"""The options that the fields of a dataclass define: what the help shows and the errors suggest."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import docstring_parser

from fcos_fast.serialize import field_types


@dataclass(frozen=True)
class Option:
    """An option of a subcommand.

    Attributes:
        name: dotted name, without dashes.
        type: type hint of its value.
        help: its line of the docstring, with markup.
        default: its default, as it is given on the command line; empty if null or empty.
        required: whether it has no default.
    """

    name: str
    type: Any
    help: str
    default: str = ""
    required: bool = False

    @property
    def flag(self) -> str:
        """The name as it is given: ``--train.epochs``."""
        return f"--{self.name}"

    @property
    def choices(self) -> list[str]:
        """All values, if there are only so many: of a ``Literal``, a ``bool``, and null."""
        found: list[str] = []
        for kind in _alternatives(self.type):
            if get_origin(kind) is Literal:
                found += map(str, get_args(kind))
            elif kind in (bool, type(None)):
                found += ["true", "false"] if kind is bool else ["null"]
            else:
                return []
        return found

    @property
    def expects(self) -> str:
        """The value in words, in the form in which it is given: ``[int, int] | null``."""
        return "{" + ",".join(self.choices) + "}" if self.choices else _in_words(self.type)


def options_of(kind: Any, defaults: Mapping[str, Any], prefix: str = "") -> Iterator[Option]:
    """The options of a dataclass; those of nested ones have dotted names.

    Args:
        kind: the dataclass.
        defaults: field -> value that replaces its default; a dataclass also decides which options are nested.
        prefix: start of the names.
    """
    explained = _explanations(kind)
    for field in fields(kind):
        value, name = defaults.get(field.name, _default(field)), prefix + field.name
        if is_dataclass(value):
            nested = {f.name: getattr(value, f.name) for f in fields(value)}
            yield from options_of(type(value), nested, f"{name}.")
            continue
        hint, help = field_types(kind)[field.name], explained.get(field.name, "")
        if value in (None, "", (), [], MISSING):
            yield Option(name, hint, help, required=value is MISSING)
        else:
            yield Option(name, hint, help, value if isinstance(value, str) else json.dumps(value))


def groups_of(kind: Any, defaults: Mapping[str, Any]) -> dict[str, str]:
    """Fields of a dataclass that are dataclasses -> the first sentence of their docstring."""
    values = {field.name: defaults.get(field.name, _default(field)) for field in fields(kind)}
    nested = {name: value for name, value in values.items() if is_dataclass(value)}
    return {
        name: (docstring_parser.parse(value.__doc__ or "").short_description or "").rstrip(".")
        for name, value in nested.items()
    }


@cache
def _explanations(kind: type[Any]) -> dict[str, str]:
    """Field -> its entry under ``Attributes`` in the docstring of the dataclass or its bases."""
    found: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        if is_dataclass(cls):
            parsed = docstring_parser.parse(cls.__doc__ or "")
            found |= {p.arg_name: " ".join((p.description or "").split()) for p in parsed.params}
    return found


def _default(field: Field[Any]) -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default  # MISSING if the option is required


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _in_words(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " | ".join(map(_in_words, arguments))
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (tuple, list):
        each = [_in_words(a) for a in arguments if a is not Ellipsis]
        return f"[{each[0]}, ...]" if origin is list or Ellipsis in arguments else f"[{', '.join(each)}]"
    if origin is dict:
        return f"{{name: {_in_words(arguments[1])}, ...}}"
    words = {Any: "value", type(None): "null", Path: "file"}
    return words.get(hint) or str(getattr(hint, "__name__", hint))
