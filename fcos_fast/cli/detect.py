"""``fcos-fast detect``: drawn images and a JSON file of the detections."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fcos_fast.cli.options import parse_options
from fcos_fast.data.checks import IMAGE_SUFFIXES, MAX_PIXELS
from fcos_fast.data.files import files_in
from fcos_fast.precision import Precision
from fcos_fast.text import printable

LONGEST_SIDE = {".jpg": 65500, ".jpeg": 65500, ".jfif": 65500, ".webp": 16383}
"""Suffix -> largest side in pixels that the image format can store."""


@dataclass(frozen=True)
class DetectOptions:
    """Detect objects in images; writes drawn images and detections.json.

      fcos-fast detect --checkpoint runs/train/best.pt IMAGES_OR_FOLDERS

    Attributes:
        images: image files, or folders of images.
        checkpoint: ``best.pt`` or ``last.pt`` of a run, or a checkpoint that ``fcos-fast convert`` reads.
        score_threshold: only detections with a higher score are kept.
        max_pixels: images with more pixels are reported and skipped.
        device: ``auto`` (CUDA if available), ``cpu``, ``cuda`` or ``cuda:1``.
        precision: ``auto`` is bfloat16 on devices with fast bfloat16, otherwise float32.
        runs: parent of the folder of the results.
        name: name of the folder of the results; a number is appended if it exists.
    """

    checkpoint: str
    images: list[str] = field(default_factory=list)
    score_threshold: float = 0.3
    max_pixels: int = MAX_PIXELS
    device: str = "auto"
    precision: Precision = "auto"
    runs: str = "runs"
    name: str = "detect"


def main(arguments: Sequence[str]) -> int:
    """Run ``fcos-fast detect``; the exit status is 1 if a file could not be read."""
    options = parse_options(
        DetectOptions, "detect", arguments, positional=("images", "image files, or folders of images")
    )
    files = find_images(options.images)

    from fcos_fast.data import DataError, read_image
    from fcos_fast.data.jpeg import is_truncated
    from fcos_fast.engine.files import write_json
    from fcos_fast.engine.predict import load
    from fcos_fast.engine.progress import Progress
    from fcos_fast.engine.report import save_image
    from fcos_fast.engine.run_folder import new_run_folder

    detector = load(options.checkpoint, options.device, options.precision)
    folder = new_run_folder(options.runs, options.name)
    results: list[dict[str, Any]] = []
    unreadable = 0
    with Progress(len(files), "detect") as progress:
        for file in files:
            try:
                image = read_image(file, options.max_pixels)
            except DataError as error:
                print(f"fcos-fast detect: {printable(str(error))}", file=sys.stderr)
                unreadable += 1
                continue
            if is_truncated(file):
                print(
                    f"fcos-fast detect: {printable(str(file))}: is truncated; the missing part is gray",
                    file=sys.stderr,
                )
            detections = detector.predict(image, options.score_threshold)
            drawn = _free_name(folder, file, max(image.shape))
            save_image(detections.draw(), drawn)
            results.append(
                {
                    "image": str(file),
                    "width": image.shape[2],
                    "height": image.shape[1],
                    "drawn": drawn.name,
                    "detections": detections.to_dict(),
                }
            )
            progress.update()
    write_json(folder / "detections.json", results)
    found = sum(len(result["detections"]) for result in results)
    print(f"{found} objects in {len(results)} images; drawn images and detections.json are in {folder}")
    return 1 if unreadable else 0


def find_images(paths: Sequence[str]) -> list[Path]:
    """Image files, and the images of each folder sorted by name.

    Raises:
        ValueError: no path is given, a path does not exist, or a folder contains no image.
    """
    if not paths:
        raise ValueError("no images given; name image files or folders")
    files: list[Path] = []
    for path in (Path(path).expanduser() for path in paths):
        if path.is_dir():
            inside = files_in(path, IMAGE_SUFFIXES)
            if not inside:
                raise ValueError(
                    f"{path} contains no image ({', '.join(IMAGE_SUFFIXES)}); give another folder"
                )
            files += inside
        elif path.exists():  # reading it reports what is wrong with anything but a regular file
            files.append(path)
        else:
            raise ValueError(f"{path} does not exist; name image files or folders")
    return files


def _free_name(folder: Path, file: Path, longer_side: int) -> Path:
    """An unused name in ``folder`` for the drawn ``file``, in an image format that can store its size."""
    suffix = file.suffix.lower()
    if suffix not in IMAGE_SUFFIXES or longer_side > LONGEST_SIDE.get(suffix, longer_side):
        suffix = ".png"
    name, number = folder / f"{file.stem}{suffix}", 2
    while name.exists():
        name, number = folder / f"{file.stem}_{number}{suffix}", number + 1
    return name
