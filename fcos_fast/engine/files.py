"""Files that are whole or not there at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; leaving the block without an error moves it over ``path`` at once.

    Whoever reads ``path`` sees the old file or the new one, never a part, whatever kills the writer.
    """
    path = Path(path)
    # Savers choose the format by the suffix. What a killed writer left is overwritten by the next.
    temporary = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
