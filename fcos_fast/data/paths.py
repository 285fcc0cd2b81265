"""The files that a dataset's own files name: the spelling on disk, and no path that leads outside."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from .checks import DataError, brief


def composed(name: str) -> str:
    """``name`` with every accent in one character with its letter; macOS splits them."""
    return unicodedata.normalize("NFC", name)


def same_name(name: str) -> str:
    """What the spellings of a file name on different systems have in common."""
    stem, suffix = os.path.splitext(composed(name))
    return stem + suffix.lower()


class PathFinder:
    """Finds the files that a data set's own files name.

    Args:
        root: folder of the data set.
        allow_outside: also find files outside ``root``; a data set from elsewhere could name any file of this machine.
            Links that lie inside are followed anyway.
    """

    def __init__(self, root: Path, allow_outside: bool = False):
        self.root = os.path.abspath(root)
        self.allow_outside = allow_outside
        self._listings: dict[str, dict[str, str]] = {}

    def find(self, places: Sequence[tuple[Path, str]], source: Path) -> tuple[Path, Path] | None:
        """The folder of the first of ``places``, each a folder and a path from there, that exists, and what is there.

        None if none exists. Backslashes are read as slashes too; suffixes may differ in case.

        Raises:
            DataError: no place inside the data folder exists, and a path, which the file ``source`` gives, leads out.
        """
        outside = None
        for folder, path in places:
            for spelled in dict.fromkeys((path, path.replace("\\", "/"))):
                place = os.path.normpath(os.path.join(folder, os.path.expanduser(spelled)))
                if not (self.allow_outside or self._is_inside(place)):
                    outside = path
                elif (found := self.present(place)) is not None:
                    return folder, found
        if outside is not None:
            raise DataError(
                f"{source}: {brief(outside)} leads outside the data folder {self.root}; correct the path, or give "
                "--data.allow_outside true if you trust this data set"
            )
        return None

    def present(self, path: str | Path) -> Path | None:
        """``path`` as it is spelled on disk; None if there is no such file or folder."""
        folder, name = os.path.split(path)
        if folder not in self._listings:  # one listing instead of a look at each of 100,000 files
            self._listings[folder] = _listing(folder)
        names = self._listings[folder]
        found = names.get(name) or names.get(same_name(name))
        if found is not None:
            return Path(folder, found)
        return Path(path) if os.path.exists(path) else None  # such as a folder whose parent may not be listed

    def _is_inside(self, place: str) -> bool:
        return os.path.commonpath((self.root, os.path.abspath(place))) == self.root


def _listing(folder: str) -> dict[str, str]:
    try:
        names = os.listdir(folder or ".")
    except (OSError, ValueError):  # missing, no folder, or a name that no file can have
        return {}
    return {same_name(name): name for name in names} | {name: name for name in names}
