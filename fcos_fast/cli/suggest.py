"""Suggestions for mistyped options and subcommands."""

from __future__ import annotations

from collections.abc import Iterable

from fcos_fast import suggest


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """The end of an error message: ``; did you mean 'train'?``, or the choices if none is near."""
    known = list(known)
    hint = suggest.did_you_mean(wrong, known, most=1)
    if hint:
        return f"; {hint}"
    return f"; choices: {', '.join(known)}" if len(known) <= 15 else "; --help lists the choices"
