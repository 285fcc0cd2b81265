"""The part of ``fcos-fast detect`` that runs the model."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import closing

from fcos_fast.cli.detect import DetectOptions
from fcos_fast.cli.detect_output import Output
from fcos_fast.data import DataError
from fcos_fast.data.jpeg import is_truncated
from fcos_fast.engine.progress import Progress
from fcos_fast.engine.run_folder import new_run_folder
from fcos_fast.inference import Predictor, load
from fcos_fast.inference.sources import Source
from fcos_fast.inference.video import import_av, video_facts
from fcos_fast.text import printable


def run(options: DetectOptions, sources: Sequence[Source]) -> int:
    """Detect objects in the sources; returns the exit status, 1 if one could not be read."""
    if any(source.kind in ("video", "webcam") for source in sources):
        import_av()  # not after half the images
    detector = _load(options)
    errors: list[DataError] = []

    def on_error(error: DataError) -> None:  # in the thread that reads
        errors.append(error)
        _warn(str(error))

    stream = detector.stream(
        options.sources,
        options.score_threshold,
        batch_size=options.batch_size,
        tile=options.tile,
        overlap=options.overlap,
        augment=options.augment,
        allow_urls=options.urls,
        max_pixels=options.max_pixels,
        on_error=on_error,
    )
    output = Output(new_run_folder(options.runs, options.name), options)
    interrupted = False
    with output, Progress(_count(sources), "detect") as progress, closing(stream):
        try:
            for found in stream:
                if found.frame is None and "://" not in found.source and is_truncated(found.source):
                    _warn(f"{found.source}: is truncated; the missing part is gray")
                output.write(found.filter(options.classes))
                _advance(progress, output.images + len(errors))
            _advance(progress, output.images + len(errors))
        except KeyboardInterrupt:  # the usual end of a webcam; what was found is kept
            interrupted = True
    if interrupted:
        raise KeyboardInterrupt(f"interrupted; {output.summary()}")
    print(output.summary())
    return 1 if errors else 0


def _load(options: DetectOptions) -> Predictor:
    """The model, after checking that it has the classes that the options name."""
    score = options.score_threshold
    detector = load(
        options.checkpoint,
        options.device,
        options.precision,
        engine=options.engine,
        lowest_score=min(score.values(), default=None) if isinstance(score, Mapping) else score,
        iou_threshold=options.iou_threshold,
        max_detections=options.max_detections,
    )
    for name in options.classes or ():
        detector.categories.label_of(name)
    return detector


def _count(sources: Sequence[Source]) -> int | None:
    """The number of images and frames; None if it is not known."""
    counts = [video_facts(source.name)[1] if source.kind == "video" else 1 for source in sources]
    known = [count for count in counts if count is not None]
    is_endless = any(source.kind == "webcam" for source in sources)
    return None if is_endless or len(known) < len(counts) else sum(known)


def _advance(progress: Progress, step: int) -> None:
    for _ in range(step - progress.step):
        progress.update()


def _warn(message: str) -> None:
    print(f"fcos-fast detect: {printable(message)}", file=sys.stderr)
