"""``fcos-fast detect``: drawn images and a JSON file of the detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fcos_fast.cli.options import parse_options
from fcos_fast.data.checks import IMAGE_SUFFIXES, MAX_PIXELS
from fcos_fast.data.files import files_in
from fcos_fast.precision import Precision


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

    from fcos_fast.cli.detect_run import run

    return run(options, files)


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
