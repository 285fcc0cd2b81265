"""Images of many requests, processed in batches by one thread."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fcos_fast.serve.images import Decoded
from fcos_fast.serve.metrics import Metrics
from fcos_fast.serve.options import ServeOptions

logger = logging.getLogger(__name__)

Predict = Callable[..., Sequence[Any]]
"""``Predictor.predict``: images, score threshold and ``batch_size`` -> the detections of each image."""


class DetectorError(Exception):
    """The detector failed on a batch."""


class QueueFullError(Exception):
    """The server has as many images as it accepts."""


class Slots:
    """Counts the images in the server, from the arrival of a request to its answer. For the event loop's thread.

    This bounds the memory and the time a request waits: a request that finds no slot is rejected before it is read.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0

    @contextmanager
    def hold(self, images: int) -> Iterator[None]:
        """Take a slot per image.

        Raises:
            QueueFullError: there are not enough free slots.
        """
        if self.taken + images > self.limit:
            raise QueueFullError
        self.taken += images
        try:
            yield
        finally:
            self.taken -= images


@dataclass(frozen=True)
class _Job:
    image: Decoded
    score_threshold: float
    detections: Future[Any] = field(default_factory=Future)


class Batcher:
    """Calls the detector in a thread of its own, on up to ``max_batch`` images at a time.

    Only images of the same size and score threshold are processed together. Some models pad the images of a batch to
    one size, which changes the results of the smaller ones; images of one size get the results of single calls.

    Args:
        predict: the detector; called in one thread only.
        options: ``max_batch`` and ``max_wait_ms``.
        metrics: counts the batches.
    """

    def __init__(self, predict: Predict, options: ServeOptions, metrics: Metrics) -> None:
        self._predict = predict
        self._options = options
        self._metrics = metrics
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()  # None: stop
        metrics.queue.set_function(self._jobs.qsize)
        self._thread = threading.Thread(target=self._work, name="detector", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether images are processed."""
        return self._thread.is_alive()

    def submit(self, image: Decoded, score_threshold: float) -> Future[Any]:
        """The future detections of an image; cancel it if nobody needs them anymore.

        The future raises DetectorError if the detector fails on the batch.
        """
        job = _Job(image, score_threshold)
        self._jobs.put(job)
        return job.detections

    def close(self) -> None:
        """Process what was submitted, then stop."""
        self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            groups: dict[tuple[int, int, float], list[_Job]] = {}
            for j in self._gather(job):
                groups.setdefault((j.image.width, j.image.height, j.score_threshold), []).append(j)
            for group in groups.values():
                self._run(group)

    def _gather(self, first: _Job) -> list[_Job]:
        """The first job of a batch and those that arrive in time."""
        jobs, end = [first], time.monotonic() + self._options.max_wait_ms / 1000
        while len(jobs) < self._options.max_batch:
            try:
                job = self._jobs.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                break
            if job is None:
                self._jobs.put(None)  # stops after this batch
                break
            jobs.append(job)
        return jobs

    def _run(self, jobs: list[_Job]) -> None:
        jobs = [job for job in jobs if job.detections.set_running_or_notify_cancel()]
        if not jobs:
            return
        self._metrics.batches.observe(len(jobs))
        try:
            images = [job.image.pixels for job in jobs]
            found = self._predict(images, jobs[0].score_threshold, batch_size=len(images))
            for job, detections in zip(jobs, found, strict=True):
                job.detections.set_result(detections)
            self._metrics.images.inc(len(jobs))
        except Exception as error:  # whatever it is, the next batch may succeed
            logger.exception("the detector failed on a batch of %d images", len(jobs))
            for job in jobs:
                if not job.detections.done():
                    job.detections.set_exception(DetectorError(str(error)))
