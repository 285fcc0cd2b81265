"""The files that ``fcos-fast detect`` writes."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from fractions import Fraction
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np

from fcos_fast.cli.detect import DetectOptions
from fcos_fast.data.checks import IMAGE_SUFFIXES
from fcos_fast.engine.files import json_list, save_image, write_text
from fcos_fast.inference import Detections
from fcos_fast.inference.video import video_facts, write_video

LONGEST_SIDE = {".jpg": 65500, ".jpeg": 65500, ".jfif": 65500, ".webp": 16383}
"""Suffix -> largest side in pixels that the image format can store."""

WEBCAM_RATE = Fraction(30)
"""Frames per second of the video of a webcam, and of files that do not say theirs."""


class Output:
    """Writes the detections of one image after the other; a context manager, at whose end the files are complete.

    Args:
        folder: an empty folder for the files.
        options: says which files are written.
    """

    def __init__(self, folder: Path, options: DetectOptions) -> None:
        self.folder, self.options = folder, options
        self.images = self.objects = 0
        self._files = ExitStack()
        self._names: set[str] = set()
        self._source = self._stem = ""  # of the last image or frame
        self._frame = -1
        self._add_result: Callable[[Any], None] | None = None
        self._write_frame: Callable[[np.ndarray, float | None], None] | None = None

    def __enter__(self) -> Output:
        self._video = self._files.enter_context(ExitStack())  # the open video, if any
        self._add_entry = self._files.enter_context(json_list(self.folder / "detections.json"))
        if self.options.save_json:
            self._add_result = self._files.enter_context(json_list(self.folder / "results.json"))
        return self

    def __exit__(self, *error: Any) -> None:
        self._files.__exit__(*error)

    def summary(self) -> str:
        """What was found, in one line."""
        drawn = "drawn images and " if self.options.draw else ""
        return f"{self.objects} objects in {self.images} images; {drawn}detections.json are in {self.folder}"

    def write(self, found: Detections) -> None:
        """Write the detections of an image, or of the next frame of a video."""
        self._begin(found)
        drawn = self._draw(found) if self.options.draw else None
        name = self._stem if found.frame is None else f"{self._stem}/{found.frame:06d}"
        if self.options.save_txt:
            write_text(_with_folder(self.folder / "labels" / f"{name}.txt"), found.to_yolo())
        if self.options.save_crops:
            self._save_crops(found, name)
        if self._add_result is not None:
            for result in found.to_coco(int(name) if name.isdecimal() else name):
                self._add_result(result)
        height, width = found.image.shape[:2]
        place = {} if found.frame is None else {"frame": found.frame, "time": found.time}
        about = {"image": found.source, **place, "width": width, "height": height, "drawn": drawn}
        self._add_entry({**about, "detections": found.to_dict()})
        self.images += 1
        self.objects += len(found)

    def _begin(self, found: Detections) -> None:
        """Choose an unused name for the files of a new image or video."""
        is_next_frame = found.frame is not None and found.source == self._source and found.frame > self._frame
        self._source, self._frame = found.source, -1 if found.frame is None else found.frame
        if is_next_frame:
            return
        self._video.close()
        self._write_frame = None
        path = urlparse(found.source).path if "://" in found.source else found.source
        stem = self._stem = Path(path).stem or "image"
        number = 1
        while _key(self._stem) in self._names:
            number += 1
            self._stem = f"{stem}_{number}"
        self._names.add(_key(self._stem))

    def _draw(self, found: Detections) -> str:
        """Write the drawn image or frame; returns the name of the file."""
        if found.frame is None:
            path = self.folder / f"{self._stem}{_suffix(found)}"
            save_image(found.draw(), path)
            return path.name
        path = self.folder / f"{self._stem}.mp4"
        if self._write_frame is None:
            rate = video_facts(found.source)[0] if Path(found.source).is_file() else None
            self._write_frame = self._video.enter_context(write_video(path, rate or WEBCAM_RATE))
        self._write_frame(np.asarray(found.draw()), found.time)
        return path.name

    def _save_crops(self, found: Detections, name: str) -> None:
        for number, (detection, crop) in enumerate(zip(found, found.crops(), strict=True)):
            folder = (
                re.sub(r"[^\w .-]", "_", detection.name).strip(" .") or "_"
            )  # a class name can hold any text
            path = self.folder / "crops" / folder / f"{name}_{number}{_suffix(found)}"
            save_image(crop, _with_folder(path))


def _key(stem: str) -> str:
    """What must differ between names: the text, or the number, which is the id of an image in COCO's format."""
    return str(int(stem)) if stem.isdecimal() else stem


def _suffix(found: Detections) -> str:
    """The suffix of the image's own format, or that of one which can store its size."""
    suffix = Path(found.source).suffix.lower() if found.frame is None else ".jpg"
    longer_side = max(found.image.shape)
    is_fit = suffix in IMAGE_SUFFIXES and longer_side <= LONGEST_SIDE.get(suffix, longer_side)
    return suffix if is_fit else ".png"


def _with_folder(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
