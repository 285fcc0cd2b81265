"""Text that comes from files, made fit to be shown."""

from __future__ import annotations


def printable(text: str) -> str:
    """``text`` with everything that is no visible character or space escaped, as Python writes it: ``\\x1b``, ``\\n``.

    Names of classes and files can hold anything; a control character must not move the cursor, colour the terminal or
    end a line, and a mark of writing direction must not reorder it.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
