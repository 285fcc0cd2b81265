"""From images of any kind to detections."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any, TypedDict, overload

import numpy as np

from fcos_fast.data.categories import Categories
from fcos_fast.data.checks import MAX_PIXELS, DataError
from fcos_fast.inference.augment import AugmentedEngine
from fcos_fast.inference.detections import Detections, score_thresholds
from fcos_fast.inference.engine import Engine
from fcos_fast.inference.read_ahead import batched, read_ahead
from fcos_fast.inference.sources import Frame, SourceLike, find_sources, has_webcam, is_one_image, read_frames
from fcos_fast.inference.tiles import TiledEngine

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image
    from torch import Tensor
    from typing_extensions import Unpack  # in typing from Python 3.11 on

SCORE_THRESHOLD = 0.3
"""Default for the lowest score of a detection."""


class StreamOptions(TypedDict, total=False):
    """The options of :meth:`Predictor.stream` but the first."""

    batch_size: int
    tile: int | None
    overlap: float
    augment: bool | Sequence[float]
    allow_urls: bool
    max_pixels: int
    on_error: Callable[[DataError], None] | None


class Predictor:
    """A trained model: finds objects in images, videos and what webcams show.

    Args:
        engine: runs the model.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    @property
    def categories(self) -> Categories:
        """Classes of the model."""
        return self.engine.categories

    @overload
    def predict(  # type: ignore[overload-overlap]  # bytes are a sequence, but mean a file here
        self,
        source: bytes | np.ndarray | Image.Image | Tensor,
        score_threshold: float | Mapping[str, float] = ...,
        **options: Unpack[StreamOptions],
    ) -> Detections: ...

    @overload
    def predict(
        self,
        source: str | Path,
        score_threshold: float | Mapping[str, float] = ...,
        **options: Unpack[StreamOptions],
    ) -> Any: ...

    @overload
    def predict(
        self,
        source: Sequence[SourceLike],
        score_threshold: float | Mapping[str, float] = ...,
        **options: Unpack[StreamOptions],
    ) -> list[Detections]: ...

    def predict(
        self,
        source: SourceLike,
        score_threshold: float | Mapping[str, float] = SCORE_THRESHOLD,
        **options: Unpack[StreamOptions],
    ) -> Detections | list[Detections]:
        """Detect objects in one image, or in several.

        Args:
            source: see :data:`~fcos_fast.inference.sources.SourceLike`.
            score_threshold: as for :meth:`stream`.
            options: the other options of :meth:`stream`.

        Returns:
            The detections of the image; for a list, a folder, a pattern or a video, a list with those of each image or
            frame. It holds all images; use :meth:`stream` for many.

        Raises:
            ValueError, TypeError: as for :meth:`stream`; also for a webcam, which never ends.
        """
        if has_webcam(find_sources(source, options.get("allow_urls", False))):
            raise ValueError("a webcam never ends, so predict cannot return; use stream")
        if is_one_image(source):
            options["on_error"] = None
            (found,) = self.stream(source, score_threshold, **options)
            return found
        return list(self.stream(source, score_threshold, **options))

    def stream(
        self,
        source: SourceLike,
        score_threshold: float | Mapping[str, float] = SCORE_THRESHOLD,
        *,
        batch_size: int = 1,
        tile: int | None = None,
        overlap: float = 0.2,
        augment: bool | Sequence[float] = False,
        allow_urls: bool = False,
        max_pixels: int = MAX_PIXELS,
        on_error: Callable[[DataError], None] | None = None,
    ) -> Generator[Detections, None, None]:
        """Detect objects in one image after the other, while a thread reads ahead.

        At most two batches of images are in memory, however many images there are, unless you keep the detections: they
        hold their image. From a webcam, the newest frames are used and those between them are dropped.

        Args:
            source: see :data:`~fcos_fast.inference.sources.SourceLike`.
            score_threshold: detections with a lower score are dropped; or class name to its own threshold, 0.3 for
                classes that are not named. The model has a threshold of its own (``score_threshold`` in its
                configuration, usually 0.05), below which nothing is found.
            batch_size: images that the model receives at once; more than 1 is faster on a GPU. It is 1 for a webcam.
            tile: side in pixels of overlapping tiles, in which objects are searched besides the whole image; for small
                objects in large images. See :class:`~fcos_fast.inference.tiles.TiledEngine`.
            overlap: overlap of neighboring tiles, as a fraction of ``tile``; larger than the objects.
            augment: test-time augmentation: True also detects in the mirror image, scales such as ``[0.8, 1, 1.25]`` in
                both at each of these sizes. See :class:`~fcos_fast.inference.augment.AugmentedEngine`.
            allow_urls: accept ``http://`` and ``https://`` URLs of images.
            max_pixels: larger images and videos are rejected.
            on_error: called, by the thread, with the error of a file that cannot be read, which is then skipped; None
                raises the error, as for a single image in :meth:`predict`.

        Returns:
            A generator; closing it ends the thread.

        Raises:
            ValueError, TypeError: at once for a wrong option or a path that does not exist; from the generator, after
                the detections before it, for an image that cannot be read. The message names the file or the shape.
        """
        thresholds = score_thresholds(score_threshold, self.categories, SCORE_THRESHOLD)
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}; expected a positive integer")
        engine: Engine = self.engine
        if augment is not False:
            engine = AugmentedEngine(engine, (1.0,) if augment is True else augment)
        if tile is not None:
            engine = TiledEngine(engine, tile, overlap, batch_size)
        sources = find_sources(source, allow_urls)
        is_live = has_webcam(sources)
        if is_live and len(list(sources)) > 1:
            raise ValueError("a webcam never ends, so no other source can follow it; stream it alone")
        frames = read_frames(sources, max_pixels, on_error)
        return _detect(engine, frames, thresholds, 1 if is_live else batch_size, is_live)


def _detect(
    engine: Engine, frames: Iterable[Frame], thresholds: np.ndarray, batch_size: int, is_live: bool
) -> Generator[Detections, None, None]:
    with closing(read_ahead(frames, batch_size, drop_oldest=is_live)) as ahead:
        for batch in batched(ahead, batch_size):
            found = engine.detect([frame.image for frame in batch])
            for frame, (boxes, scores, labels) in zip(batch, found, strict=True):
                place = (frame.image, engine.categories, frame.source, frame.number, frame.time)
                yield Detections(boxes, scores, labels, *place)[scores >= thresholds[labels]]
