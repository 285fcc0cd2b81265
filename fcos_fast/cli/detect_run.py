"""The part of ``fcos-fast detect`` that needs torch."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fcos_fast.cli.detect import DetectOptions
from fcos_fast.data import DataError
from fcos_fast.data.checks import IMAGE_SUFFIXES
from fcos_fast.data.images import read_pixels
from fcos_fast.data.jpeg import is_truncated
from fcos_fast.engine.files import save_image, write_json
from fcos_fast.engine.progress import Progress
from fcos_fast.engine.run_folder import new_run_folder
from fcos_fast.inference import Predictor, load
from fcos_fast.text import printable

LONGEST_SIDE = {".jpg": 65500, ".jpeg": 65500, ".jfif": 65500, ".webp": 16383}
"""Suffix -> largest side in pixels that the image format can store."""


def run(options: DetectOptions, files: Sequence[Path]) -> int:
    """Detect objects in the files; returns the exit status, 1 if a file could not be read."""
    detector = load(options.checkpoint, options.device, options.precision)
    folder = new_run_folder(options.runs, options.name)
    results: list[dict[str, Any]] = []
    with Progress(len(files), "detect") as progress:
        for file in files:
            try:
                results.append(_detect(detector, file, folder, options))
            except DataError as error:
                _warn(str(error))
            progress.update()
    write_json(folder / "detections.json", results)
    found = sum(len(result["detections"]) for result in results)
    print(f"{found} objects in {len(results)} images; drawn images and detections.json are in {folder}")
    return 1 if len(results) < len(files) else 0


def _detect(detector: Predictor, file: Path, folder: Path, options: DetectOptions) -> dict[str, Any]:
    """Detect objects in an image and write the drawn image; returns its entry in the JSON file.

    Raises:
        DataError: the image cannot be read.
    """
    image = read_pixels(file, options.max_pixels)
    if is_truncated(file):
        _warn(f"{file}: is truncated; the missing part is gray")
    detections = detector.predict(image, options.score_threshold)
    drawn = _free_name(folder, file, max(image.shape))
    save_image(detections.draw(), drawn)
    return {
        "image": str(file),
        "width": image.shape[1],
        "height": image.shape[0],
        "drawn": drawn.name,
        "detections": detections.to_dict(),
    }


def _warn(message: str) -> None:
    print(f"fcos-fast detect: {printable(message)}", file=sys.stderr)


def _free_name(folder: Path, file: Path, longer_side: int) -> Path:
    """An unused name in ``folder`` for the drawn ``file``, in an image format that can store its size."""
    suffix = file.suffix.lower()
    if suffix not in IMAGE_SUFFIXES or longer_side > LONGEST_SIDE.get(suffix, longer_side):
        suffix = ".png"
    name, number = folder / f"{file.stem}{suffix}", 2
    while name.exists():
        name, number = folder / f"{file.stem}_{number}{suffix}", number + 1
    return name
