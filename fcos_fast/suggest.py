"""Suggestions for mistyped names. Needs no torch: the command line uses it too."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name: object, known: Iterable[str], most: int = 3) -> str:
    """``did you mean 'train'?`` with up to ``most`` of the nearest ``known`` names; empty if none is near."""
    name, known = str(name), list(known)
    near = get_close_matches(name, known, n=most) or get_close_matches(name, known, n=most, cutoff=0.4)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else ""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> ValueError:
    """The error for an unknown ``kind`` of thing; the message lists the nearest and all ``known`` names."""
    known = list(known)
    hint = did_you_mean(name, known)
    return ValueError(f"unknown {kind} {name!r}; {hint + ' Known' if hint else 'known'}: {', '.join(known)}")
