"""``fcos-fast benchmark``: latency and throughput of a detector on this machine."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from fcos_fast.cli.options import parse_options
from fcos_fast.models import PRESETS
from fcos_fast.precision import Precision

Variant = Literal["plain", "optimized", "compiled"]


@dataclass(frozen=True)
class BenchmarkOptions:
    """Time a detector from the image's file to its boxes. Variants are timed in turns, on the same images.

    Attributes:
        checkpoint: a ``best.pt`` or ``last.pt``. Without one, a model with random weights is timed.
        backbone: of the model with random weights, also ``timm:NAME``.
        preset: of the model with random weights.
        images: folder of images, or one file; by default images are generated.
        sizes: HEIGHTxWIDTH of the generated images; the model then scales them as it is configured to.
        batch_sizes: images that run together.
        precisions: ``auto`` is bfloat16 where the device is fast at it, else float32.
        variants: ``plain`` as training evaluates it, channels-last and under autocast; ``optimized`` for inference, as
            ``fcos-fast detect`` has it; ``compiled`` as well.
        repeats: samples of each variant.
        warmup: runs of each variant before, not counted.
        threads: of the CPU; by default as many as torch takes.
        device: ``auto`` (CUDA where there is one), ``cpu``, ``cuda``, ``cuda:1``.
        output: JSON file to write.
    """

    checkpoint: str | None = None
    backbone: str = "resnet50"
    preset: Literal[tuple(PRESETS)] = "official-improved"
    images: str | None = None
    sizes: list[str] = field(default_factory=lambda: ["800x1088"])
    batch_sizes: list[int] = field(default_factory=lambda: [1])
    precisions: list[Precision] = field(default_factory=lambda: ["auto"])
    variants: list[Variant] = field(default_factory=lambda: ["plain", "optimized"])
    repeats: int = 10
    warmup: int = 2
    threads: int | None = None
    device: str = "auto"
    output: str | None = None

    def __post_init__(self) -> None:
        counts = {"repeats": self.repeats, "threads": 1 if self.threads is None else self.threads}
        counts |= {"batch_sizes": min(self.batch_sizes, default=0)}
        for name, value in counts.items():
            if value < 1:
                raise ValueError(f"--{name} is {value}; it must be 1 or more")
        if self.warmup < 0:
            raise ValueError(f"--warmup is {self.warmup}; it must be 0 or more")


def main(arguments: Sequence[str]) -> int:
    """Run the subcommand with these arguments and return its exit status."""
    options = parse_options(BenchmarkOptions, "benchmark", arguments)
    sizes = [None] if options.images else [_parse_size(size) for size in options.sizes]

    from fcos_fast.cli.benchmark_run import run

    report = run(options, sizes)
    if options.output:
        from fcos_fast.engine.files import write_json

        write_json(options.output, report)
    return 0


def _parse_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    size = (int(match[1]), int(match[2])) if match else (0, 0)
    if min(size) < 32:
        raise ValueError(f"--sizes has {text!r}; expected HEIGHTxWIDTH of at least 32 pixels, as 800x1088")
    return size
