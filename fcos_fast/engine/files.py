"""Files that are whole or not there at all."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

TEMPORARY = ".{}.part{}"
"""Name of a file that is being written: unique, so that two writers never share one, and with the final suffix, by
which savers choose the format."""


class WriteError(OSError):
    """A file could not be written: the disk is full, the folder was deleted, permission is missing."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside ``path``; leaving the block without an error moves it over ``path`` at once.

    Whoever reads ``path`` sees the old file or the new one, never a part, whatever kills the writer.

    Raises:
        WriteError: the file cannot be written; the old one, if there was one, is unchanged.
    """
    path = Path(path)
    temporary = path.with_name(TEMPORARY.format(secrets.token_hex(8), path.suffix))
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise _write_error(path, error) from error
    finally:
        with suppress(OSError):  # whose reason is that of the error above
            temporary.unlink(missing_ok=True)


def _write_error(path: Path, error: OSError) -> WriteError:
    if not path.parent.is_dir():
        return WriteError(f"{path}: cannot be written, its folder does not exist (any more)")
    kept = "; the file that was there is unchanged" if path.exists() else ""
    return WriteError(f"{path}: cannot be written: {error.strerror or error}{kept}")


def remove_temporary(folder: Path) -> None:
    """Remove what killed writers left in ``folder``, where nobody else may be writing now."""
    for path in folder.glob(TEMPORARY.format("*", "*")):
        path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, whole or not at all; what UTF-8 cannot hold (undecodable file names) is escaped."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | Path, value: Any) -> None:
    """Write plain values as JSON, whole or not at all; NaN and infinities, which JSON does not have, become null."""
    write_text(path, json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
