"""``fcos-fast detect``: pictures in, drawn pictures and a JSON file out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fcos_fast.cli.options import parse_options
from fcos_fast.data.checks import IMAGE_SUFFIXES
from fcos_fast.precision import Precision
from fcos_fast.text import printable


@dataclass(frozen=True)
class DetectOptions:
    """Draw what a checkpoint finds in pictures.

    Attributes:
        images: image files, or folders whose images are taken.
        checkpoint: a ``best.pt`` or ``last.pt``.
        score_threshold: weaker detections are left out.
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda``, ``cuda:1``.
        precision: ``auto`` is bfloat16 where the device is fast at it.
        runs: folder in which the folder of the results is made.
        name: of that folder; a number is added where there is one already.
    """

    checkpoint: str
    images: list[str] = field(default_factory=list)
    score_threshold: float = 0.3
    device: str = "auto"
    precision: Precision = "auto"
    runs: str = "runs"
    name: str = "detect"


def main(arguments: Sequence[str]) -> int:
    """Run the verb; its exit status is 1 where a file could not be read."""
    options = parse_options(DetectOptions, "detect", arguments, positional="images")
    files = find_images(options.images)

    from fcos_fast.data import DataError, read_image
    from fcos_fast.engine.files import write_json
    from fcos_fast.engine.predict import load
    from fcos_fast.engine.progress import Progress
    from fcos_fast.engine.report import save_picture
    from fcos_fast.engine.run_folder import new_run_folder

    detector = load(options.checkpoint, options.device, options.precision)
    folder = new_run_folder(options.runs, options.name)
    results, unreadable = [], 0
    with Progress(len(files), "detect") as progress:
        for file in files:
            try:
                image = read_image(file)
            except DataError as error:
                print(f"fcos-fast detect: {printable(str(error))}", file=sys.stderr)
                unreadable += 1
                continue
            detections = detector.predict(image, options.score_threshold)
            picture = _free_name(folder, file)
            save_picture(detections.draw(), picture)
            results.append(
                {
                    "image": str(file),
                    "width": image.shape[2],
                    "height": image.shape[1],
                    "drawn": picture.name,
                    "detections": detections.to_dict(),
                }
            )
            progress.update()
    write_json(folder / "detections.json", results)
    found = sum(len(result["detections"]) for result in results)
    print(f"{found} objects in {len(results)} images; drawn pictures and detections.json are in {folder}")
    return 1 if unreadable else 0


def find_images(paths: Sequence[str]) -> list[Path]:
    """The files themselves, and for each folder the images in it, by name.

    Raises:
        ValueError: nothing is given, a path that does not exist, or a folder without an image.
    """
    if not paths:
        raise ValueError("no image is given; name image files or folders")
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise ValueError(f"{path} holds no image ({', '.join(IMAGE_SUFFIXES)}); name another folder")
            files += inside
        elif path.is_file():
            files.append(path)
        else:
            raise ValueError(f"there is no file or folder {path}")
    return files


def _free_name(folder: Path, file: Path) -> Path:
    """A name in ``folder`` for the drawn ``file``; files of one name may come from several folders."""
    suffix = file.suffix.lower() if file.suffix.lower() in IMAGE_SUFFIXES else ".png"
    name, number = folder / f"{file.stem}{suffix}", 2
    while name.exists():
        name, number = folder / f"{file.stem}_{number}{suffix}", number + 1
    return name
