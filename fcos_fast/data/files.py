"""Files of a data set: which there are, what text they hold, and where the paths in them lead."""

from __future__ import annotations

import codecs
import json
import os
import re
import stat
import unicodedata
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any, BinaryIO
from xml.etree import ElementTree

from .checks import DataError, Report, brief

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
# UTF-32 first: its mark begins with that of UTF-16.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_DECLARATION = re.compile(rb"""^\s*<\?xml\s[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)""")
# An XML file that is readable byte by byte cannot be the UTF-16 that .NET likes to declare; bytes beyond ASCII
# under a declaration of ASCII are mostly UTF-8.
_UNRELIABLE = ("utf-8", "utf-16", "utf-32", "ascii")
# Files declare the standard and use its extension.
_EXTENSIONS = {
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "big5": "big5hkscs",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
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


def read_text(path: Path, report: Report | None = None) -> str:
    """The text of a file, with newlines as ``\\n``.

    A byte order mark decides; without one the text is UTF-16 where it holds zero bytes, else UTF-8. What is neither is
    read as Windows-1252, the superset of Latin-1, and counted in ``report``.

    Raises:
        DataError: the file cannot be read or is not text.
    """
    return _decoded(_read_bytes(path), path, report)


def read_xml(path: Path, report: Report | None = None) -> ElementTree.Element:
    """The root element of an XML file, in any encoding that it declares and Python knows.

    Raises:
        DataError: the file cannot be read or is not valid XML.
    """
    data = _read_bytes(path)
    declared = _DECLARATION.match(data)
    try:
        encoding = None if declared is None else _codec(declared[1].decode("ascii"))
        text = _decoded(data, path, report) if encoding is None else data.decode(encoding)
        return ElementTree.fromstring(text.lstrip())
    except DataError:
        raise
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{path}: is not valid xml ({error}); write it again or remove it") from None


def read_json(path: Path, report: Report | None = None) -> Any:
    """The value of a JSON file; integers of thousands of digits become floats.

    Raises:
        DataError: the file cannot be read, is not valid JSON or is nested too deep.
    """
    text = read_text(path, report)
    try:
        try:
            return json.loads(text)
        except ValueError as error:
            if isinstance(error, json.JSONDecodeError):
                raise
            return json.loads(text, parse_int=_lenient_int)  # slow, so only where a number asks for it
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not valid json ({error}); write it again") from None


def read_yaml(path: Path, report: Report | None = None) -> Any:
    """The value of a YAML file, every scalar as the text that stands in the file.

    YAML 1.1 takes ``no`` for a boolean, ``007`` for 7, ``12:30`` for 750, ``2001-01-01`` for a date; in names of
    classes and folders they are none of these.

    Raises:
        DataError: the file cannot be read, is not valid YAML, repeats a key or is nested too deep.
    """
    import yaml

    class TextLoader(yaml.BaseLoader):
        def construct_mapping(self, node, deep=False):
            mapping = super().construct_mapping(node, deep)
            if len(mapping) < len(node.value):
                raise yaml.MarkedYAMLError("a mapping that repeats a key", node.start_mark)
            return mapping

    text = read_text(path, report)
    try:
        return yaml.load(text, TextLoader)
    except (yaml.YAMLError, RecursionError) as error:
        message = " ".join(str(error).split())
        raise DataError(f"{path}: is not valid yaml ({message}); correct it") from None


def read_list(path: Path, report: Report) -> list[str]:
    """The lines of a text file of image names, without those of what systems leave behind, which are counted."""
    names = []
    for line in filter(None, map(str.strip, read_text(path, report).split("\n"))):
        if is_leftover(line.replace("\\", "/")):
            report.add(LEFTOVER, path, brief(line))
        else:
            names.append(line)
    return names


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


def _read_bytes(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def _decoded(data: bytes, path: Path, report: Report | None) -> str:
    marked = next((encoding for mark, encoding in _BYTE_ORDER_MARKS if data.startswith(mark)), None)
    if marked is None and b"\0" in data:
        marked = "utf-16-le" if data[1::2].count(0) >= data[::2].count(0) else "utf-16-be"
    for encoding in (marked,) if marked else ("utf-8", "cp1252"):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if _CONTROL.search(text):
            break
        if encoding == "cp1252" and report is not None:
            report.add("text that is not UTF-8, read as Windows-1252", path, "write it as UTF-8")
        return text.replace("\r\n", "\n").replace("\r", "\n")
    raise DataError(f"{path}: is no text; write it again as UTF-8")


def _codec(declared: str) -> str | None:
    """The codec for what an XML file declares; None where the bytes tell better."""
    name = codecs.lookup(declared.lower().removeprefix("x-")).name
    return None if name in _UNRELIABLE else _EXTENSIONS.get(name, name)


def _lenient_int(digits: str) -> int | float:
    return int(digits) if len(digits) < 400 else float(digits)
