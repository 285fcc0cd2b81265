"""Text from files, made safe to print."""

from __future__ import annotations


def printable(text: str) -> str:
    """``text`` with everything except visible characters and spaces escaped as in Python: ``\\x1b``, ``\\n``.

    Names of classes and files can contain anything. A control character must not move the cursor, change colors or end
    the line, and a bidirectional mark must not reorder it.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
