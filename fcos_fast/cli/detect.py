"""``fcos-fast detect``: drawn images and videos, and the detections as JSON, text and crops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fcos_fast.cli.options import parse_options
from fcos_fast.data.checks import MAX_PIXELS
from fcos_fast.fields import between, check_fields, checked, positive
from fcos_fast.precision import EngineName, Precision

COMMON = (
    *("checkpoint", "score_threshold", "classes", "save_txt", "save_json", "save_crops", "draw"),
    *("tile", "overlap", "augment", "batch_size", "device", "precision", "runs", "name", "config"),
)
"""Options that the help lists first."""


@dataclass(frozen=True)
class DetectOptions:
    """Detect objects in images and videos; writes them drawn, and detections.json.

      fcos-fast detect --checkpoint runs/train/best.pt SOURCES

    Attributes:
        sources: image and video files, folders of them, patterns such as ``'a/*.jpg'``, a webcam such as /dev/video0.
        checkpoint: ``best.pt`` or ``last.pt`` of a run, a checkpoint that ``fcos-fast convert`` reads, or a file of
            ``fcos-fast export``.
        score_threshold: only detections with at least this score are kept; or class name to threshold, such as
            ``'{cat: 0.5, dog: 0.2}'``, and 0.3 for other classes.
        classes: class names to keep, such as ``[cat, dog]``; by default all.
        save_txt: write the detections of each image in YOLO's text format, with scores, into labels.
        save_json: write results.json in COCO's result format; the id of an image is its file name without suffix, as a
            number if it is one.
        save_crops: write the image inside each box into crops/CLASS.
        draw: write the images and videos with their detections drawn.
        batch_size: images that the model receives at once.
        tile: also search overlapping tiles of this side in pixels; for small objects in large images.
        overlap: overlap of neighboring tiles as a fraction of ``tile``; larger than the objects.
        augment: test-time augmentation: ``true`` also detects in the mirror image; scales such as ``[0.8, 1, 1.25]``
            detect in both at each of these sizes.
        iou_threshold: IoU above which a box suppresses one with a lower score; by default that of the model.
        max_detections: maximum number of detections per image; by default that of the model.
        urls: accept http and https URLs of images.
        max_pixels: images with more pixels are reported and skipped.
        device: ``auto`` (CUDA if available), ``cpu``, ``cuda`` or ``cuda:1``.
        precision: ``auto`` is bfloat16 on devices with fast bfloat16, otherwise float32.
        engine: ``torch``, ``onnxruntime`` or ``openvino``; ``auto``: the fastest that is installed. By default a
            checkpoint runs in torch, and an exported detector in the runtime of its format.
        runs: parent of the folder of the results.
        name: name of the folder of the results; a number is appended if it exists.
    """

    checkpoint: str
    sources: list[str] = field(default_factory=list)
    score_threshold: float | dict[str, float] = 0.3
    classes: tuple[str, ...] | None = None
    save_txt: bool = False
    save_json: bool = False
    save_crops: bool = False
    draw: bool = True
    batch_size: int = positive(1)
    tile: int | None = checked(None, lambda n: n is None or n >= 32, "an integer of at least 32")
    overlap: float = between(0.2, 0, 0.9)
    augment: bool | tuple[float, ...] = False
    iou_threshold: float | None = checked(
        None, lambda value: value is None or 0 <= value <= 1, "a number from 0 to 1"
    )
    max_detections: int | None = checked(None, lambda n: n is None or n > 0, "a positive integer")
    urls: bool = False
    max_pixels: int = positive(MAX_PIXELS)
    device: str = "auto"
    precision: Precision = "auto"
    engine: EngineName = "default"
    runs: str = "runs"
    name: str = "detect"

    def __post_init__(self) -> None:
        check_fields(self, "--")


def main(arguments: Sequence[str]) -> int:
    """Run ``fcos-fast detect``; the exit status is 1 if a file could not be read."""
    options = parse_options(
        DetectOptions,
        "detect",
        arguments,
        positional=("sources", "images, videos, folders, patterns, a webcam or URLs"),
        common=COMMON,
    )
    if not options.sources:
        raise ValueError("nothing to detect objects in; name images, videos, folders or patterns")

    from fcos_fast.inference.sources import find_sources

    sources = find_sources(options.sources, options.urls)  # before torch is imported

    from fcos_fast.cli.detect_run import run

    return run(options, list(sources))
