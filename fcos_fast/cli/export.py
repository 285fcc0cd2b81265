"""``fcos-fast export``: a trained detector as a file for other runtimes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fcos_fast.cli.benchmark import find_images
from fcos_fast.cli.evaluate import EvaluateDataConfig, data_config
from fcos_fast.cli.options import parse_options
from fcos_fast.fields import check_fields, checked

ExportFormat = Literal["onnx", "openvino", "torch-export", "aoti"]
ExportPrecision = Literal["float32", "int8"]

MAX_AP_DROP = 0.5


@dataclass(frozen=True)
class ExportOptions:
    """Write a trained detector as a file for other runtimes, with its post-processing and class names inside.

      fcos-fast export --checkpoint runs/train/best.pt --images FOLDER
      fcos-fast export --checkpoint runs/train/best.pt --format openvino --precision int8

    The file is checked before it is written: it must detect what the checkpoint detects. In int8, its average precision
    must be close to that in float32.

    Attributes:
        checkpoint: ``best.pt`` or ``last.pt`` of a run, or a checkpoint that ``fcos-fast convert`` reads.
        format: ``onnx``: for ONNX Runtime, OpenVINO and others. ``openvino``: OpenVINO's own, two files, ``.xml`` and
            ``.bin``. ``torch-export``: a program for torch with the operators of fcos_fast, ``.pt2``. ``aoti``: the
            same, compiled for processors like this one, ``.pt2``; it needs a C++ compiler.
        output: file to write; by default the checkpoint with the suffix of the format.
        precision: ``int8``: with ``openvino``; faster on CPUs, and a quarter of the size. It needs a
            dataset, see ``data``.
        images: folder of images, or one file, for the check; give images like those of the training. By default images
            are generated. In int8 the ranges of the activations are measured on them, and the training images are
            the default.
        data: for int8, the dataset on which average precision is compared; by default the validation split of the
            training.
        max_ap_drop: for int8, by how many points (hundredths) average precision may drop.
        score_threshold: only detections with a higher score are found; by default the checkpoint's.
        nms_threshold: IoU above which a box suppresses one with a lower score; by default the checkpoint's.
        max_detections: maximum number of detections per image; by default the checkpoint's.
    """

    checkpoint: str
    format: ExportFormat = "onnx"
    output: str | None = None
    precision: ExportPrecision = "float32"
    images: str | None = None
    data: EvaluateDataConfig = field(default_factory=EvaluateDataConfig)
    max_ap_drop: float = checked(MAX_AP_DROP, lambda points: points >= 0, "a number >= 0")
    score_threshold: float | None = checked(
        None, lambda p: p is None or 0 <= p <= 1, "a number in 0..1 or None"
    )
    nms_threshold: float | None = checked(
        None, lambda p: p is None or 0 <= p <= 1, "a number in 0..1 or None"
    )
    max_detections: int | None = checked(None, lambda n: n is None or n > 0, "a positive integer or None")

    def __post_init__(self) -> None:
        check_fields(self, "--")
        if self.precision == "int8" and self.format != "openvino":
            raise ValueError("--precision int8 needs --format openvino")
        measured = {"data": EvaluateDataConfig(), "max_ap_drop": MAX_AP_DROP}
        given = [name for name, default in measured.items() if getattr(self, name) != default]
        if self.precision != "int8" and given:
            raise ValueError(f"--{given[0]} is for --precision int8; omit it, or add --precision int8")


def main(arguments: Sequence[str]) -> int:
    """Run ``fcos-fast export``."""
    options = parse_options(ExportOptions, "export", arguments)
    images = find_images(options.images) if options.images else []
    names = ("score_threshold", "nms_threshold", "max_detections")
    overrides = {name: getattr(options, name) for name in names if getattr(options, name) is not None}

    if options.precision == "int8":
        _export_int8(options, images, overrides)
        return 0

    from fcos_fast.export import export

    export(options.checkpoint, options.output, options.format, images, **overrides)
    return 0


def _export_int8(options: ExportOptions, images: Sequence[Path], overrides: dict[str, Any]) -> None:
    from fcos_fast.engine.checkpoint import load_checkpoint, model_from_checkpoint
    from fcos_fast.export import export_int8

    saved = load_checkpoint(options.checkpoint)
    _, categories = model_from_checkpoint(saved)
    data = data_config(options.checkpoint, options.data, saved)
    files: Sequence[Any] = images or [record.image for record in data.load(data.train, categories).records]
    dataset = data.load(data.val, categories)
    export_int8(
        options.checkpoint,
        options.output,
        files,
        dataset,
        options.max_ap_drop,
        options.data.workers,
        **overrides,
    )
