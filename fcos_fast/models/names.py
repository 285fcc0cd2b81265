"""What to say to a name that nobody knows."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def unknown_name(kind: str, name: object, known: Iterable[str]) -> ValueError:
    """The error for an unknown ``kind`` of thing: the nearest of the ``known`` names, then all of them."""
    known = list(known)
    near = get_close_matches(str(name), known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    return ValueError(f"unknown {kind} {name!r}; {hint}Known: {', '.join(known)}")
