"""Paths that a dataset's own files name: their spelling on disk, and none that leads outside the dataset."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from .checks import DataError, brief


def composed(name: str) -> str:
    """``name`` in Unicode normal form C; macOS stores accents apart from their letters."""
    return unicodedata.normalize("NFC", name)


def same_name(name: str) -> str:
    """What the spellings of a file name on different systems have in common."""
    stem, suffix = os.path.splitext(composed(name))
    return stem + suffix.lower()


class PathFinder:
    """Finds the files that a dataset's own files name.

    Args:
        root: folder of the dataset.
        allow_outside: also find files outside ``root``. A downloaded dataset could name any file of this machine.
            Links inside ``root`` are always followed.
    """

    def __init__(self, root: Path, allow_outside: bool = False):
        self.root = os.path.abspath(root)
        self.allow_outside = allow_outside
        self._listings: dict[str, dict[str, str]] = {}
        self._folders: dict[str, tuple[str, bool]] = {}

    def find(self, places: Sequence[tuple[Path, str]], source: Path) -> tuple[Path, Path] | None:
        """The first of ``places`` that exists, as (its folder, the file or folder on disk); None if none exists.

        A place is a folder and a path relative to it. Backslashes are also read as slashes; suffixes may differ in
        case.

        Args:
            places: where to look, in this order.
            source: the file that names the paths, for the error message.

        Raises:
            DataError: no place inside the dataset exists, and one of the paths leads outside.
        """
        outside = None
        for folder, path in places:
            for spelled in dict.fromkeys((path, path.replace("\\", "/"))):
                parent, name = os.path.split(os.path.join(folder, os.path.expanduser(spelled)))
                if name in ("", ".", ".."):
                    parent, name = os.path.join(parent, name), ""
                parent, is_inside = self._resolved(parent)
                place = os.path.join(parent, name) if name else parent
                if not (self.allow_outside or is_inside or os.path.abspath(place) == self.root):
                    outside = path
                elif (found := self.present(place)) is not None:
                    return folder, found
        if outside is not None:
            raise DataError(
                f"{source}: {brief(outside)} leads outside the dataset folder {self.root}; correct the path, or give "
                "--data.allow_outside true if you trust this dataset"
            )
        return None

    def present(self, path: str | Path) -> Path | None:
        """``path`` as it is spelled on disk; None if it does not exist."""
        folder, name = os.path.split(path)
        if folder not in self._listings:  # one listing instead of 100,000 stat calls
            self._listings[folder] = _listing(folder)
        names = self._listings[folder]
        found = names.get(name) or names.get(same_name(name))
        if found is not None:
            return Path(folder, found)
        return Path(path) if os.path.exists(path) else None  # its folder may be accessible but not readable

    def _resolved(self, folder: str) -> tuple[str, bool]:
        """``folder`` without ``..``, and whether it is in the dataset's folder; cached, since most images share one."""
        if folder not in self._folders:
            inside = os.path.commonpath((self.root, os.path.abspath(folder))) == self.root
            self._folders[folder] = os.path.normpath(folder), inside
        return self._folders[folder]


def _listing(folder: str) -> dict[str, str]:
    try:
        names = os.listdir(folder or ".")
    except (OSError, ValueError):  # missing, not a folder, or an invalid name
        return {}
    return {same_name(name): name for name in names} | {name: name for name in names}
