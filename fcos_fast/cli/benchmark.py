"""``fcos-fast benchmark``: latency and throughput of a detector on this machine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fcos_fast.cli.options import Preset, parse_options
from fcos_fast.fields import at_least, check_fields, checked, positive
from fcos_fast.precision import Precision

Variant = Literal["plain", "optimized", "compiled"]


@dataclass(frozen=True)
class BenchmarkOptions:
    """Time a detector from the image file to the boxes. All variants process the same images, interleaved.

      fcos-fast benchmark --checkpoint runs/train/best.pt --images FOLDER

    Attributes:
        checkpoint: ``best.pt`` or ``last.pt`` of a run, a checkpoint that ``fcos-fast convert`` reads, or a file of
            ``fcos-fast export``; by default a model with random weights is timed.
        images: folder of images, or one file; by default images are generated.
        preset: preset of the model with random weights.
        backbone: backbone of the model with random weights; ``timm:NAME`` uses timm's.
        sizes: sizes of the generated images before the model's own resizing, for example ``[480x640,800x1088]``.
        batch_sizes: numbers of images per batch, for example ``[1,8]``.
        precisions: ``auto`` is bfloat16 on devices with fast bfloat16, otherwise float32.
        variants: ``plain`` runs the model as evaluation during training does (channels-last, autocast); ``optimized``
            prepares it for inference as ``fcos-fast detect`` does; ``compiled`` also uses torch.compile. An exported
            detector has no variants.
        repeats: timed runs of each variant.
        warmup: untimed runs of each variant before the timed ones.
        threads: CPU threads; by default PyTorch's choice.
        device: ``auto`` (CUDA if available), ``cpu``, ``cuda`` or ``cuda:1``.
        output: JSON file for the results.
    """

    checkpoint: str | None = None
    images: str | None = None
    preset: Preset = "official-improved"
    backbone: str = "resnet50"
    sizes: list[str] = field(default_factory=lambda: ["800x1088"])
    batch_sizes: list[int] = field(default_factory=lambda: [1])
    precisions: list[Precision] = field(default_factory=lambda: ["auto"])
    variants: list[Variant] = field(default_factory=lambda: ["plain", "optimized"])
    repeats: int = positive(10)
    warmup: int = at_least(2, 0)
    threads: int | None = checked(None, lambda n: n is None or n > 0, "a positive integer or None")
    device: str = "auto"
    output: str | None = None

    def __post_init__(self) -> None:
        check_fields(self, "--")
        if min(self.batch_sizes, default=0) < 1:
            raise ValueError(f"--batch_sizes={self.batch_sizes}; expected at least one positive integer")


def main(arguments: Sequence[str]) -> int:
    """Run ``fcos-fast benchmark``."""
    options = parse_options(BenchmarkOptions, "benchmark", arguments)
    if options.images:
        find_images(options.images)  # a mistake is reported before a model is built
    sizes = [None] if options.images else [_parse_size(size) for size in options.sizes]

    from fcos_fast.cli.benchmark_run import run

    report = run(options, sizes)
    if options.output:
        from fcos_fast.engine.files import write_json

        write_json(options.output, report)
    return 0


def find_images(source: str) -> list[Path]:
    """The image files in a folder, or that a pattern matches, or the one file.

    Raises:
        ValueError: there is none.
    """
    from fcos_fast.inference.sources import find_sources

    files = [Path(found.name) for found in find_sources(source) if found.kind == "image"]
    if not files:
        raise ValueError(f"--images {source}: contains no image")
    return files


def _parse_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    size = (int(match[1]), int(match[2])) if match else (0, 0)
    if min(size) < 32:
        raise ValueError(
            f"--sizes has {text!r}; expected HEIGHTxWIDTH of at least 32 pixels, such as 800x1088"
        )
    return size
