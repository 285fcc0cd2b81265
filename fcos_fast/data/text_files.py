"""Text, XML, JSON and YAML files of a dataset, in the encodings that they come in."""

from __future__ import annotations

import codecs
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from .checks import DataError, Report, brief
from .files import LEFTOVER, is_leftover, open_regular

# UTF-32 first: its mark starts with UTF-16's.
_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, "utf-8-sig"),
)
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f]")
_DECLARATION = re.compile(rb"""^\s*<\?xml\s[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)""")
# Declarations that are often wrong: an XML file whose declaration reads as ASCII is not the UTF-16 that .NET declares,
# and non-ASCII bytes in a file that declares ASCII are mostly UTF-8.
_UNRELIABLE = ("utf-8", "utf-16", "utf-32", "ascii")
# Files declare the standard but contain characters of its extension.
_EXTENSIONS = {
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "big5": "big5hkscs",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
}


def read_bytes(path: Path) -> bytes:
    """The bytes of a regular file.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with open_regular(path) as file:
            return file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


def read_text(path: Path, report: Report | None = None) -> str:
    """The text of a file, with newlines as ``\\n``.

    A byte order mark decides the encoding. Without one, text with zero bytes is UTF-16 and other text is UTF-8. Text
    that is not valid UTF-8 is read as Windows-1252, the superset of Latin-1, and counted in ``report``.

    Raises:
        DataError: the file cannot be read or is not text.
    """
    return _decoded(read_bytes(path), path, report)


def read_xml(path: Path, report: Report | None = None) -> ElementTree.Element:
    """The root element of an XML file in any encoding that Python has a codec for.

    Raises:
        DataError: the file cannot be read or is not valid XML.
    """
    data = read_bytes(path)
    declared = _DECLARATION.match(data)
    try:
        encoding = None if declared is None else _codec(declared[1].decode("ascii"))
        text = _decoded(data, path, report) if encoding is None else data.decode(encoding)
        return ElementTree.fromstring(text.lstrip())
    except DataError:
        raise
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{path}: is not valid XML ({error}); correct or remove it") from None


def read_json(path: Path, report: Report | None = None) -> Any:
    """The value of a JSON file; integers of thousands of digits become floats.

    Raises:
        DataError: the file cannot be read, is not valid JSON or is nested too deeply.
    """
    text = read_text(path, report)
    try:
        try:
            return json.loads(text)
        except ValueError as error:
            if isinstance(error, json.JSONDecodeError):
                raise
            return json.loads(text, parse_int=_lenient_int)  # slow, so only if a number needs it
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not valid JSON ({error}); correct it") from None


def read_yaml(path: Path, report: Report | None = None) -> Any:
    """The value of a YAML file, with every scalar as a string.

    In YAML 1.1 ``no`` is a boolean, ``007`` is 7, ``12:30`` is 750 and ``2001-01-01`` a date. Here they are names of
    classes and folders.

    Raises:
        DataError: the file cannot be read, is not valid YAML, repeats a key or is nested too deeply.
    """
    import yaml

    class TextLoader(yaml.BaseLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            mapping = super().construct_mapping(node, deep)
            if len(mapping) < len(node.value):
                raise yaml.MarkedYAMLError("a mapping that repeats a key", node.start_mark)
            return mapping

    text = read_text(path, report)
    try:
        return yaml.load(text, TextLoader)
    except (yaml.YAMLError, RecursionError) as error:
        message = " ".join(str(error).split())
        raise DataError(f"{path}: is not valid YAML ({message}); correct it") from None


def read_list(path: Path, report: Report) -> list[str]:
    """The lines of a text file of image names. Leftovers of operating systems are skipped and counted in ``report``."""
    names = []
    for line in filter(None, map(str.strip, read_text(path, report).split("\n"))):
        if is_leftover(line.replace("\\", "/")):
            report.add(LEFTOVER, path, brief(line))
        else:
            names.append(line)
    return names


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
            report.add("text that is not UTF-8, read as Windows-1252", path, "save it as UTF-8")
        return text.replace("\r\n", "\n").replace("\r", "\n")
    raise DataError(f"{path}: is not a text file; save it as UTF-8")


def _codec(declared: str) -> str | None:
    """The codec for the declared encoding of an XML file; None if the declaration is not to be trusted."""
    name = codecs.lookup(declared.lower().removeprefix("x-")).name
    return None if name in _UNRELIABLE else _EXTENSIONS.get(name, name)


def _lenient_int(digits: str) -> int | float:
    return int(digits) if len(digits) < 400 else float(digits)
