"""Files and folders of a dataset: opened safely, listed without what systems leave behind."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import BinaryIO

from .checks import DataError

LEFTOVER = "file that the system left behind, skipped"
"""The fault of a dataset that lists such a file."""

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
        DataError: it is a folder, or a FIFO, socket or device, which could block forever.
        OSError: it is missing or may not be read.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise DataError(f"{path}: is {kind}; expected a regular file. Remove it from the dataset")
    return open(path, "rb")


def is_leftover(path: str | PurePath) -> bool:
    """Whether a path is metadata that macOS, Windows, Jupyter or a file server left among the data."""
    parts = [part for part in str(path).split("/") if part not in ("", ".")]
    return bool(parts) and (parts[-1].startswith("._") or not _METADATA.isdisjoint(parts))


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is hidden or a leftover, and thus not part of the data."""
    return name.startswith(".") or is_leftover(name)


def files_in(folder: Path, suffixes: Sequence[str], recursive: bool = False) -> list[Path]:
    """The sorted files of a folder that have one of ``suffixes`` (lower case; files may have any case).

    Hidden files are skipped. Links are followed; a folder that several links lead to is read once.
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


def check_is_new(root: str | Path) -> None:
    """Raise DataError if ``root`` exists and is not an empty folder."""
    root = Path(root)
    if root.is_symlink() or (root.exists() and (not root.is_dir() or any(root.iterdir()))):
        raise DataError(f"{root}: already exists; remove it or choose another folder")


@contextmanager
def new_folder(root: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``root``; if the block succeeds, it becomes ``root``.

    Raises:
        DataError: ``root`` exists and is not an empty folder.
    """
    root = Path(root)
    check_is_new(root)
    root.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as unfinished:
        folder = Path(unfinished) / root.name
        folder.mkdir()
        yield folder
        os.replace(folder, root)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
