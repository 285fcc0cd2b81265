"""Names of a dataset's images in another dataset: relative, unique, and readable in every format."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, count
from pathlib import PurePath

from .checks import IMAGE_SUFFIXES, DataError
from .paths import composed


def paths_in_common_folder(files: Sequence[str]) -> list[str]:
    """The paths relative to the folder that all files have in common."""
    common = os.path.commonpath([os.path.dirname(file) for file in files])
    return [os.path.relpath(file, common) for file in files]


def relative_names(files: Sequence[str]) -> list[str]:
    """:func:`paths_in_common_folder` with printable parts, none of them hidden.

    Raises:
        DataError: a suffix that only COCO files may name.
    """
    for file in files:
        if not file.lower().endswith(IMAGE_SUFFIXES):
            raise DataError(
                f"{file}: has none of the suffixes {', '.join(IMAGE_SUFFIXES)}; rename the image and its entry"
            )
    return ["/".join(map(_safe, PurePath(path).parts)) for path in paths_in_common_folder(files)]


def unique_names(candidates: Iterable[Sequence[str]], key: Callable[[str], str]) -> list[str]:
    """For each image the first of its candidates whose key no earlier one has; at worst the last with a number."""
    names, used = [], set()
    for choice in candidates:
        stem, suffix = os.path.splitext(choice[-1])
        numbered = (f"{stem}_{number}{suffix}" for number in count(2))
        name = next(name for name in chain(choice, numbered) if key(name) not in used)
        used.add(key(name))
        names.append(name)
    return names


def stem(name: str) -> str:
    """The name without its suffix: what VOC and YOLO, whose annotations are files beside the images, tell apart."""
    return composed(os.path.splitext(name)[0])


def count_unsafe(files: Sequence[str]) -> int:
    """The number of files whose names :func:`relative_names` changes."""
    pairs = zip(paths_in_common_folder(files), relative_names(files), strict=True)
    return sum(path != name for path, name in pairs)


def _safe(part: str) -> str:
    """A file or folder name that readers do not skip, and that is unchanged on a line of a text file, also without its
    suffix."""
    printable = "".join(letter if letter.isprintable() else "_" for letter in part).replace("\\", "_")
    name = "".join(piece.strip() for piece in os.path.splitext(printable.strip()))
    return f"_{name[1:]}" if name.startswith(".") else name or "_"
