"""The fastest of several engines, found by timing them. Needs no torch."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median

import numpy as np

from fcos_fast.data.categories import Categories
from fcos_fast.engine.files import WriteError, write_json
from fcos_fast.inference.engine import Engine, RawDetections
from fcos_fast.machine import cpu_name
from fcos_fast.models.config import DetectorConfig
from fcos_fast.models.sizes import batch_size, detection_size

SECONDS = 0.5
"""Time per engine and round, unless two calls take longer."""

ROUNDS = 2

MILLISECONDS = dict[str, float]
"""Engine to the time of one call."""


def cache_folder() -> Path:
    """Where timings and converted models are kept: ``$XDG_CACHE_HOME/fcos_fast``, by default ``~/.cache/fcos_fast``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fcos_fast"


class FastestEngine:
    """Runs the fastest of several engines of one model.

    The first batch of each size is run by all of them, a few times. The times are kept in ``engines.json`` of
    :func:`cache_folder`, for this processor, number of threads, versions, configuration and size; they do not depend on
    the weights.

    Args:
        candidates: name of an engine to the function that builds it.
        config: configuration of the model.
        categories: its classes.
        precision: of the candidates, which is a part of the key of the times.
    """

    def __init__(
        self,
        candidates: Mapping[str, Callable[[], Engine]],
        config: DetectorConfig,
        categories: Categories,
        precision: str = "float32",
    ) -> None:
        self.categories = categories
        self.iou_threshold = config.nms_threshold
        self._candidates = candidates
        self._config = config
        self._machine = _digest(
            cpu_name(),
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            os.environ.get("OMP_NUM_THREADS"),
            [_version(package) for package in ("fcos_fast", "torch", "onnxruntime", "openvino")],
            config.to_dict(),
            precision,
        )
        self._engines: dict[str, Engine] = {}
        self._chosen: dict[str, str] = {}  # by size

    def detect(self, images: Sequence[np.ndarray]) -> list[RawDetections]:
        """As :meth:`Engine.detect <fcos_fast.inference.engine.Engine.detect>`."""
        size = self._size(images)
        if size not in self._chosen:
            self._chosen[size] = self._choose(size, images)
            self._engines = {
                name: self._engines[name] for name in {*self._chosen.values()} & {*self._engines}
            }
        return self._engine(self._chosen[size]).detect(images)

    def _size(self, images: Sequence[np.ndarray]) -> str:
        sizes = [detection_size(image.shape[:2], self._config) for image in images]
        height, width = batch_size(sizes, self._config.size_divisor)
        return f"{len(images)}x{height}x{width}"

    def _engine(self, name: str) -> Engine:
        if name not in self._engines:
            self._engines[name] = self._candidates[name]()
        return self._engines[name]

    def _choose(self, size: str, images: Sequence[np.ndarray]) -> str:
        key = f"{self._machine} {size}"
        times = _read_times().get(key, {})
        known = times.keys() == self._candidates.keys()
        if not known:
            times = time_engines({name: self._engine(name) for name in self._candidates}, images)
            _keep_times(key, times)
        best = min(times, key=times.__getitem__)
        listed = ", ".join(f"{name} {times[name]:.1f} ms" for name in sorted(times, key=times.__getitem__))
        print(f"engine for {size}: {best} ({listed}{'; timed before' * known})", file=sys.stderr, flush=True)
        return best


def time_engines(engines: Mapping[str, Engine], images: Sequence[np.ndarray]) -> MILLISECONDS:
    """The time of one call of each engine: the best median of two rounds.

    The engines run one after the other, not interleaved: threads of one that wait actively would slow down the next.
    """
    times: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(ROUNDS):
        for name, engine in engines.items():
            engine.detect(images)  # allocates memory, converts weights
            samples: list[float] = []
            while len(samples) < 2 or sum(samples) < SECONDS:
                start = time.perf_counter()
                engine.detect(images)
                samples.append(time.perf_counter() - start)
            times[name].append(median(samples) * 1000)
    return {name: min(medians) for name, medians in times.items()}


def _read_times() -> dict[str, MILLISECONDS]:
    try:
        times: dict[str, MILLISECONDS] = json.loads((cache_folder() / "engines.json").read_text())
    except (OSError, ValueError):
        return {}
    return times if isinstance(times, dict) else {}


def _keep_times(key: str, times: MILLISECONDS) -> None:
    """Without a folder that can be written, the engines are timed again the next time."""
    try:
        cache_folder().mkdir(parents=True, exist_ok=True)
        write_json(cache_folder() / "engines.json", _read_times() | {key: times})
    except (OSError, WriteError):
        pass


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
