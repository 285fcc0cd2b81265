"""Where images come from: files, folders, patterns, videos, webcams, URLs, and images in memory."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Literal, TypeAlias, Union

import numpy as np

from fcos_fast.data.checks import IMAGE_SUFFIXES, MAX_PIXELS, DataError
from fcos_fast.data.files import files_in
from fcos_fast.inference.images import ImageLike, as_array

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".mts"),
    *(".m2ts", ".3gp", ".ogv"),
)
"""Suffixes of the video files that are read, in lower case."""

MEDIA_SUFFIXES = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)

SourceLike: TypeAlias = Union[ImageLike, int, "Sequence[SourceLike]", "Iterator[SourceLike]"]
"""An image (:data:`~fcos_fast.inference.images.ImageLike`), a folder, a glob pattern, a video file, the number of a
webcam, a URL, or a list or iterator of these."""


@dataclass(frozen=True, eq=False)
class Frame:
    """An image and where it comes from.

    Attributes:
        image: (H, W, 3) RGB, uint8 or float32 in [0, 1], upright.
        source: path or URL; empty for an image in memory.
        number: number of the frame in a video, from 0 on; None for other images.
        time: seconds since the beginning of the video; None for other images.
    """

    image: np.ndarray
    source: str = ""
    number: int | None = None
    time: float | None = None


@dataclass(frozen=True)
class Source:
    """One image, video or webcam, not opened yet."""

    kind: Literal["image", "url", "video", "webcam"]
    value: ImageLike

    @property
    def name(self) -> str:
        """Path or URL; empty for an image in memory."""
        return str(self.value) if isinstance(self.value, (str, Path)) else ""


def is_one_image(source: SourceLike) -> bool:
    """Whether ``source`` is a single image: no list, folder, pattern or video."""
    if isinstance(source, (str, Path)):
        path = Path(source).expanduser()
        is_pattern = glob.has_magic(str(source)) and not path.exists() and "://" not in str(source)
        return not (path.is_dir() or is_pattern or path.suffix.lower() in VIDEO_SUFFIXES)
    return not isinstance(source, (list, tuple, Iterator))


def find_sources(source: SourceLike, allow_urls: bool = False) -> Iterable[Source]:
    """The images and videos that ``source`` stands for; a list, except for an iterator.

    Folders list their images and videos sorted by name, without subfolders. A pattern (``*``, ``?``, ``[...]``, and
    ``**`` for any subfolders) lists the images and videos that match, sorted.

    Args:
        source: see :data:`SourceLike`.
        allow_urls: accept ``http://`` and ``https://`` URLs. An untrusted list of images could otherwise make this
            machine open any address.

    Raises:
        DataError: a path does not exist, a folder or pattern has no image or video, or a URL is not allowed.
    """
    if isinstance(source, (list, tuple)):
        return [found for item in source for found in find_sources(item, allow_urls)]
    if isinstance(source, Iterator):
        return chain.from_iterable(find_sources(item, allow_urls) for item in source)
    if isinstance(source, int) and not isinstance(source, bool):
        return [Source("webcam", f"/dev/video{source}")]
    if isinstance(source, (str, Path)):
        return _find_named(str(source), allow_urls)
    return [Source("image", source)]  # type: ignore[arg-type]  # reading it rejects what is not one


def has_webcam(sources: Iterable[Source]) -> bool:
    """Whether one of the sources never ends; those of an iterator are not known yet."""
    return isinstance(sources, list) and any(source.kind == "webcam" for source in sources)


def _find_named(name: str, allow_urls: bool) -> list[Source]:
    scheme, separator, _ = name.partition("://")
    if separator and not os.path.exists(name):
        return [_url(name, scheme.lower(), allow_urls)]
    path = Path(name).expanduser()
    if path.is_dir():
        files = files_in(path, MEDIA_SUFFIXES)
        if not files:
            raise DataError(
                f"{name} contains no image or video ({', '.join(MEDIA_SUFFIXES)}); give another folder"
            )
        return [_file(file) for file in files]
    if path.exists():  # reading it reports what is wrong with anything but a regular file
        return [Source("webcam", str(path)) if name.startswith("/dev/video") else _file(path)]
    if glob.has_magic(name):
        matches = sorted(glob.glob(str(path), recursive=True))
        files = [Path(match) for match in matches if match.lower().endswith(MEDIA_SUFFIXES)]
        if not files:
            raise DataError(f"no image or video matches {name}; give another pattern")
        return [_file(file) for file in files if not file.is_dir()]
    raise DataError(f"{name} does not exist; name an image, a video, a folder or a pattern such as 'a/*.jpg'")


def _file(path: Path) -> Source:
    return Source("video" if path.suffix.lower() in VIDEO_SUFFIXES else "image", path)


def _url(name: str, scheme: str, allow_urls: bool) -> Source:
    if scheme not in ("http", "https"):
        raise DataError(f"{name}: cannot read {scheme} URLs; expected http:// or https://, or a file")
    if not allow_urls:
        raise DataError(f"{name}: URLs are not read unless you allow it: allow_urls=True, or --urls true")
    return Source("url", name)


def read_frames(
    sources: Iterable[Source],
    max_pixels: int = MAX_PIXELS,
    on_error: Callable[[DataError], None] | None = None,
) -> Iterator[Frame]:
    """Decode images and frames, one after the other.

    Args:
        sources: what to read.
        max_pixels: larger images are rejected.
        on_error: called with the error of a source that cannot be read, which is then skipped; None raises the error.

    Raises:
        DataError: a file or URL cannot be read.
        ValueError, TypeError: an image in memory is not one.
        ModuleNotFoundError: a video needs PyAV.
    """
    for source in sources:
        try:
            yield from _read(source, max_pixels)
        except DataError as error:
            if on_error is None:
                raise
            on_error(error)


def _read(source: Source, max_pixels: int) -> Iterator[Frame]:
    if source.kind == "image":
        yield Frame(as_array(source.value, max_pixels), source.name)
    elif source.kind == "url":
        from fcos_fast.inference.urls import download

        yield Frame(download(source.name, max_pixels), source.name)
    else:
        from fcos_fast.inference.video import read_video

        yield from read_video(source.name, max_pixels, webcam=source.kind == "webcam")
