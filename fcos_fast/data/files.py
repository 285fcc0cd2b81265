"""Files of a data set: which there are, what text they hold, and where the paths in them lead."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import BinaryIO

from .checks import DataError

LEFTOVER = "file that the system left behind, skipped"
"""The fault of a data set that lists one."""

_METADATA = {"__MACOSX", ".ipynb_checkpoints", "@eaDir", "$RECYCLE.BIN"}
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: str | Path) -> BinaryIO:
    """Open a file for reading.

    Raises:
        DataError: it is a FIFO, socket, device or folder; reading the first three could wait for ever.
        OSError: it is missing or may not be read.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise DataError(f"{path}: is {kind}; expected a regular file. Take it out of the data set")
    return open(path, "rb")


def is_leftover(path: str | PurePath) -> bool:
    """Whether a path is metadata that macOS, Jupyter or a file server left among the data."""
    path = PurePath(path)
    return path.name.startswith("._") or not _METADATA.isdisjoint(path.parts)


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is no part of the data that it lies among."""
    return name.startswith(".") or is_leftover(name)


def files_in(folder: Path, suffixes: Sequence[str], recursive: bool = False) -> list[Path]:
    """What a folder holds but for folders, with one of ``suffixes`` (in small letters) in any case, sorted.

    What :func:`is_hidden` is skipped. Links are followed; a folder that several of them lead to is read once.
    """
    found, pending, seen = [], [str(folder)], set()
    while pending:
        here = pending.pop(0)
        real = os.path.realpath(here)
        if real in seen:
            continue
        seen.add(real)
        with os.scandir(here) as entries:
            visible = [entry for entry in entries if not is_hidden(entry.name)]
        for entry in sorted(visible, key=lambda entry: entry.name):
            if _is_folder(entry):
                pending += [entry.path] if recursive else []
            elif entry.name.lower().endswith(tuple(suffixes)):
                found.append(Path(entry.path))
    return sorted(found)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False
