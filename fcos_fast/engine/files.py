"""Files that are written atomically: readers see the old or the new one, never a part."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image

TEMPORARY = ".{}.part{}"
"""Name of a file while it is written: unique, so that two writers never share one, and with the final suffix, because
savers choose the format by it."""


class WriteError(OSError):
    """A file could not be written: the disk is full, the folder was deleted, permission is missing."""


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder; if the block succeeds, it atomically replaces ``path``.

    Readers of ``path`` see the old file or the new one, never a part, even if the writer is killed.

    Raises:
        WriteError: the file cannot be written; an old file is unchanged.
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
        with suppress(OSError):  # it failed for the same reason as above
            temporary.unlink(missing_ok=True)


def _write_error(path: Path, error: OSError) -> WriteError:
    if not path.parent.is_dir():
        return WriteError(f"{path}: cannot be written, its folder does not exist")
    kept = "; the old file is unchanged" if path.exists() else ""
    return WriteError(f"{path}: cannot be written: {error.strerror or error}{kept}")


def remove_temporary(folder: Path) -> None:
    """Remove the temporary files of killed writers; nobody else may be writing in ``folder``."""
    for path in folder.glob(TEMPORARY.format("*", "*")):
        path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically; surrogates (of undecodable file names) are escaped."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | Path, value: Any) -> None:
    """Write plain values as JSON, atomically; NaN and infinities, which JSON does not have, become null."""
    write_text(path, json.dumps(_finite(value), indent=1, allow_nan=False) + "\n")


@contextmanager
def json_list(path: str | Path) -> Iterator[Callable[[Any], None]]:
    """Write a JSON list of any length, atomically; yields a function that appends an item, one line each."""
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        separator = "[\n"

        def append(item: Any) -> None:
            nonlocal separator
            file.write(separator + json.dumps(_finite(item), allow_nan=False))
            separator = ",\n"

        yield append
        file.write("[]\n" if separator == "[\n" else "\n]\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def save_image(image: Image.Image, path: str | Path) -> None:
    """Write an image atomically; the suffix decides the format."""
    with replacing(path) as temporary:
        image.save(temporary)
