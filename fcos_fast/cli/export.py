"""``fcos-fast export``: a trained detector as a file for other runtimes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from fcos_fast.cli.benchmark import find_images
from fcos_fast.cli.options import parse_options
from fcos_fast.fields import check_fields, checked

ExportFormat = Literal["onnx", "openvino"]


@dataclass(frozen=True)
class ExportOptions:
    """Write a trained detector as a file for other runtimes, with its post-processing and class names inside.

      fcos-fast export --checkpoint runs/train/best.pt --images FOLDER

    The file is checked before it is written: it must detect what the checkpoint detects.

    Attributes:
        checkpoint: ``best.pt`` or ``last.pt`` of a run, or a checkpoint that ``fcos-fast convert`` reads.
        format: ``onnx``: for ONNX Runtime, OpenVINO and others. ``openvino``: OpenVINO's own, two files, ``.xml`` and
            ``.bin``.
        output: file to write; by default the checkpoint with the suffix of the format.
        images: folder of images, or one file, for the check; give images like those of the training. By default images
            are generated.
        score_threshold: only detections with a higher score are found; by default the checkpoint's.
        nms_threshold: IoU above which a box suppresses one with a lower score; by default the checkpoint's.
        max_detections: maximum number of detections per image; by default the checkpoint's.
    """

    checkpoint: str
    format: ExportFormat = "onnx"
    output: str | None = None
    images: str | None = None
    score_threshold: float | None = checked(
        None, lambda p: p is None or 0 <= p <= 1, "a number in 0..1 or None"
    )
    nms_threshold: float | None = checked(
        None, lambda p: p is None or 0 <= p <= 1, "a number in 0..1 or None"
    )
    max_detections: int | None = checked(None, lambda n: n is None or n > 0, "a positive integer or None")

    def __post_init__(self) -> None:
        check_fields(self, "--")


def main(arguments: Sequence[str]) -> int:
    """Run ``fcos-fast export``."""
    options = parse_options(ExportOptions, "export", arguments)
    images = find_images(options.images) if options.images else []

    from fcos_fast.export import export

    export(
        options.checkpoint,
        options.output,
        options.format,
        images,
        score_threshold=options.score_threshold,
        nms_threshold=options.nms_threshold,
        max_detections=options.max_detections,
    )
    return 0
