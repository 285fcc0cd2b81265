"""The part of ``fcos-fast benchmark`` that needs torch."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

from fcos_fast.cli.benchmark import BenchmarkOptions, Variant, find_images
from fcos_fast.data import SyntheticConfig, read_image, synthetic_image
from fcos_fast.data.synthetic import save_image
from fcos_fast.engine.benchmark import CANDIDATES, STAGES, benchmark, make_talkative
from fcos_fast.engine.checkpoint import load_checkpoint, model_from_checkpoint
from fcos_fast.engine.progress import Progress
from fcos_fast.inference.exported import ExportedEngine
from fcos_fast.inference.loading import exported_engine, is_exported
from fcos_fast.machine import cpu_name, machine
from fcos_fast.models import PRESETS, Detector, build_detector
from fcos_fast.models.sizes import detection_size, padded
from fcos_fast.models.transform import image_size
from fcos_fast.precision import Precision, choose_device, choose_precision

EXPLANATION = """input: size of the (first) image after the model's resizing and padding
times in ms, the median for each stage; images/s at the median; found: detections per image
exported detectors: the post-process is in the network"""


def run(options: BenchmarkOptions, sizes: Sequence[tuple[int, int] | None]) -> dict[str, Any]:
    """Print the machine, the model and a table of times, and return them.

    Args:
        options: options of the subcommand.
        sizes: (height, width) of the generated images; None for the user's own images.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    model, about = _model(options)
    if isinstance(model, Detector):
        model.to(device)
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    facts, rows = {"device": gpu or cpu_name(), **machine()}, []
    print("\n".join(f"{name:9} {value}" for name, value in {**facts, "model": about}.items()))
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            files = find_images(options.images or "") if size is None else _draw(Path(folder), size, options)
            if options.checkpoint is None and isinstance(model, Detector):
                model = make_talkative(model, read_image(files[0]).to(device))
            rows += _measure(options, model, device, files)
    print("\n" + table(rows) + "\n\n" + EXPLANATION)
    return {"machine": facts, "model": about, "rows": rows}


def _model(options: BenchmarkOptions) -> tuple[Detector | ExportedEngine, str]:
    """The model and its description."""
    if options.checkpoint is not None and is_exported(options.checkpoint):
        engine = exported_engine(options.checkpoint, options.device, threads=options.threads)
        about = f"{engine.config.backbone}, {len(engine.categories)} classes, from {options.checkpoint}"
        return engine, about
    if options.checkpoint is not None:
        model, categories = model_from_checkpoint(load_checkpoint(options.checkpoint))
        return model, f"{model.config.backbone}, {len(categories)} classes, from {options.checkpoint}"
    torch.manual_seed(0)
    model = build_detector(replace(PRESETS[options.preset], backbone=options.backbone))
    return model, (
        f"{options.backbone}, preset {options.preset}, {model.config.num_classes} classes, random weights; its last "
        f"layers are set so that about {CANDIDATES} candidates per image reach NMS"
    )


def _measure(
    options: BenchmarkOptions, model: Detector | ExportedEngine, device: torch.device, files: list[Path]
) -> list[dict[str, Any]]:
    models: dict[str, Any] = {"float32 exported": model}
    if isinstance(model, Detector):
        dtypes = dict.fromkeys(choose_precision(precision, device)[0] for precision in options.precisions)
        models = {
            f"{_name(dtype)} {variant}": _variant(model, variant, dtype)
            for dtype, variant in product(dtypes, options.variants)
        }
    image = Path(options.images).name if options.images else files[0].stem.split("-")[0]
    first = detection_size(image_size(read_image(files[0])), model.config)
    seen = "x".join(map(str, padded(first, model.config.size_divisor)))
    rows = []
    for batch_size in options.batch_sizes:
        runs = len(models) * (options.warmup + options.repeats)
        with Progress(runs, f"{image}, batch {batch_size}", images=batch_size) as progress:
            timings = benchmark(
                models, files, batch_size, options.repeats, options.warmup, on_sample=progress.update
            )
        for name, timing in timings.items():
            precision, variant = name.split()
            about: dict[str, Any] = {"images": image, "network_sees": seen, "batch_size": batch_size}
            rows.append(about | {"precision": precision, "variant": variant} | timing.summary())
    return rows


def _variant(model: Detector, variant: Variant, dtype: torch.dtype) -> tuple[Detector, torch.dtype]:
    """The model and the dtype of its autocast (float32: none)."""
    if variant == "plain":
        return model.to(memory_format=torch.channels_last), dtype
    return model.optimize_for_inference(_name(dtype), compile=variant == "compiled"), torch.float32


def _name(dtype: torch.dtype) -> Precision:
    return "bfloat16" if dtype == torch.bfloat16 else "float32"


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as aligned text, under a header."""
    names = ["images", "network_sees", "batch_size", "precision", "variant"]
    numbers = ["p20_ms", "p50_ms", "p80_ms", "images_per_s", "detections_per_image"]
    titles = ["images", "input", "batch", "precision", "variant"]
    lines = [[*titles, *STAGES, "p20", "p50", "p80", "images/s", "found"]]
    for row in rows:
        values = [*row["stages_p50_ms"].values(), *(row[number] for number in numbers)]
        lines.append([*(str(row[name]) for name in names), *map(_short, values)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < len(names) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _short(number: float) -> str:
    """Three significant digits."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _draw(folder: Path, size: tuple[int, int], options: BenchmarkOptions) -> list[Path]:
    """Write one generated JPEG image per image of the largest batch."""
    side = min(size)
    config = SyntheticConfig(size, object_size=(side // 16, side // 2))
    files = []
    for index in range(max(options.batch_sizes)):
        files.append(folder / f"{size[0]}x{size[1]}-{index}.jpg")
        save_image(synthetic_image(0, index, config), files[-1])
    return files
