"""Dataclasses to plain values and back."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from fcos_fast.serialize import from_plain, to_plain


@dataclass(frozen=True)
class Inner:
    ratio: float = 0.5
    pairs: tuple[tuple[int, int], ...] = ((1, 2),)


@dataclass(frozen=True)
class Outer:
    name: str
    kind: Literal["a", "bcd"] = "a"
    size: int | tuple[int, ...] | None = None
    flag: bool = False
    inner: Inner = field(default_factory=Inner)
    spare: Inner | None = None


FULL = Outer("x", "bcd", (3, 4), True, Inner(2, ()), Inner(pairs=((5, 6), (7, 8))))


@pytest.mark.parametrize("value", [Outer("x"), Outer("x", size=3), FULL])
def test_round_trip(value):
    plain = to_plain(value)
    assert from_plain(Outer, plain) == value
    assert from_plain(Outer, json.loads(json.dumps(plain))) == value
    assert plain == json.loads(json.dumps(plain))  # no tuple, no dataclass


def test_defaults():
    assert from_plain(Outer, {"name": "x", "inner": {"ratio": 1}}) == Outer("x", inner=Inner(ratio=1))


@pytest.mark.parametrize(
    ("values", "kind", "message"),
    [
        ({"nam": "x"}, ValueError, "unknown Outer field 'nam'; did you mean 'name'"),
        ({}, ValueError, "name is missing; Outer needs it"),
        ({"name": 3}, TypeError, "name=3; expected a string"),
        ({"name": "x", "kind": "bcc"}, ValueError, "unknown value of kind 'bcc'; did you mean 'bcd'"),
        ({"name": "x", "flag": 1}, TypeError, "flag=1; expected True or False"),
        ({"name": "x", "size": True}, TypeError, "size=True; expected an integer"),
        ({"name": "x", "size": "3"}, TypeError, "size='3'; expected an integer"),
        ({"name": "x", "size": {}}, TypeError, "size={}; expected an integer or a list or None"),
        ({"name": "x", "size": [3, "4"]}, TypeError, r"size\[1\]='4'; expected an integer"),
        ({"name": "x", "inner": 3}, TypeError, "inner=3; expected a mapping of the fields of Inner"),
        (
            {"name": "x", "inner": {"ration": 3}},
            ValueError,
            "unknown Inner field 'ration'; did you mean 'ratio'",
        ),
        ({"name": "x", "inner": {"ratio": "3"}}, TypeError, r"inner\.ratio='3'; expected a number"),
        ({"name": "x", "spare": {"pairs": [[1]]}}, ValueError, r"spare\.pairs\[0\]=\[1\]; expected 2 values"),
        ({"name": "x", "spare": {"pairs": 1}}, TypeError, r"spare\.pairs=1; expected a list"),
        ([1], TypeError, r"\[1\]; expected a mapping of the fields of Outer"),
    ],
)
def test_errors_name_the_field(values: Any, kind: type[Exception], message: str):
    with pytest.raises(kind, match=message):
        from_plain(Outer, values)


def test_a_base_class_chooses_its_subclass():
    @dataclass
    class Base:
        @classmethod
        def class_for(cls, values):
            return Derived if values.get("derived") else cls

    @dataclass
    class Derived(Base):
        derived: bool = False

    assert from_plain(Base, {}) == Base()
    assert from_plain(Base, {"derived": True}) == Derived(derived=True)
