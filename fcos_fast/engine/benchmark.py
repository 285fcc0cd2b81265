"""Time a detector on this machine, from the image file to the boxes."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fcos_fast.data import read_image
from fcos_fast.data.images import read_pixels
from fcos_fast.inference.exported import ExportedEngine
from fcos_fast.models import FCOS, Detector
from fcos_fast.precision import autocast

STAGES = ("decode", "pre-process", "network", "post-process")
"""``decode``: image files to pixels. ``network``: backbone, pyramid and head. ``post-process``: threshold, top-k,
boxes, NMS. ``pre-process``: the rest of the model's call: copy to the device, checks, resizing, normalization, padding,
and scaling the boxes to the original image."""

Name = TypeVar("Name")

CANDIDATES = 1000
"""Number of (location, class) pairs per image that a model with random weights sends to NMS."""


@dataclass(frozen=True)
class Timing:
    """Samples of one model.

    Attributes:
        stages: milliseconds of each stage, (number of samples,), in the order of :data:`STAGES`.
        batch_size: images per sample.
        detections: mean number of detections per image.
    """

    stages: dict[str, np.ndarray]
    batch_size: int
    detections: float

    def summary(self) -> dict[str, Any]:
        """p20, p50 and p80 of the total, medians of the stages, images per second at the median."""
        whole = np.sum(list(self.stages.values()), axis=0)
        p20, p50, p80 = (float(np.percentile(whole, q)) for q in (20, 50, 80))
        return {
            "p20_ms": p20,
            "p50_ms": p50,
            "p80_ms": p80,
            "images_per_s": 1000 * self.batch_size / p50,
            "stages_p50_ms": {name: float(np.median(samples)) for name, samples in self.stages.items()},
            "detections_per_image": self.detections,
            "samples": len(whole),
        }


def benchmark(
    models: Mapping[Name, tuple[Detector, torch.dtype] | ExportedEngine],
    files: Sequence[Path],
    batch_size: int = 1,
    repeats: int = 10,
    warmup: int = 2,
    on_sample: Callable[[], None] = lambda: None,
) -> dict[Name, Timing]:
    """Time models on the same images, interleaved, so that other load on the machine affects all of them.

    Args:
        models: name to a model in evaluation mode on its device, and its autocast dtype (float32: no autocast); or to
            the engine of an exported detector.
        files: image files; each sample uses the next ``batch_size`` of them, and the first ones again after the last.
        batch_size: images per sample.
        repeats: samples per model.
        warmup: untimed runs per model.
        on_sample: called after every run, ``len(models) * (warmup + repeats)`` times.
    """
    samples: dict[Name, dict[str, list[float]]] = {name: {stage: [] for stage in STAGES} for name in models}
    found = dict.fromkeys(models, 0)
    images = cycle(files)
    for sample in range(-warmup, repeats):
        batch = list(islice(images, batch_size))
        for name, model in models.items():
            if isinstance(model, ExportedEngine):
                times, detections = time_engine(model, batch)
            else:
                times, detections = time_stages(*model, batch)
            on_sample()
            if sample >= 0:
                found[name] += sum(len(detection["scores"]) for detection in detections)
                for stage in STAGES:
                    samples[name][stage].append(times[stage])
    return {
        name: Timing(
            {stage: np.array(values) for stage, values in samples[name].items()},
            batch_size,
            found[name] / (batch_size * repeats),
        )
        for name in models
    }


def time_stages(
    model: Detector, dtype: torch.dtype, files: Sequence[Path]
) -> tuple[dict[str, float], list[dict[str, Tensor]]]:
    """Milliseconds of each stage of one call, and its detections. The device is synchronized between the stages."""
    device = model.transform.mean.device
    clock = _Clock(device)
    with torch.inference_mode(), autocast(dtype, device), clock.inside(model, "network", "postprocess"):
        start = clock.now()
        images = [read_image(file) for file in files]
        decoded = clock.now()
        detections = model([image.to(device) for image in images])
        end = clock.now()
    inside = clock.milliseconds
    times = {"decode": decoded - start, "network": inside["network"], "post-process": inside["postprocess"]}
    return times | {"pre-process": end - decoded - sum(inside.values())}, detections


def time_engine(
    engine: ExportedEngine, files: Sequence[Path]
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """As :func:`time_stages`; the post-processing is inside the network and its time 0."""
    clock = _Clock(torch.device("cpu"))
    with clock.inside(engine, "run"):
        start = clock.now()
        images = [read_pixels(file) for file in files]
        decoded = clock.now()
        detections = [found._asdict() for found in engine.detect(images)]
        end = clock.now()
    network = clock.milliseconds["run"]
    times = {"decode": decoded - start, "pre-process": end - decoded - network, "network": network}
    return times | {"post-process": 0.0}, detections


class _Clock:
    """A clock that waits for the device, and times methods of a model."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.milliseconds: dict[str, float] = {}

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter_ns() / 1e6

    @contextmanager
    def inside(self, model: Detector | ExportedEngine, *methods: str) -> Iterator[None]:
        """Time the calls of these methods within the block."""
        before = {
            name: vars(model).get(name) for name in methods
        }  # a compiled network is an instance attribute
        for name in methods:
            self.milliseconds[name] = 0.0
            setattr(model, name, self._timed(name, getattr(model, name)))
        try:
            yield
        finally:
            for name, own in before.items():
                delattr(model, name) if own is None else setattr(model, name, own)

    def _timed(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            start = self.now()
            result = method(*args)
            self.milliseconds[name] += self.now() - start
            return result

        return run


@torch.no_grad()
def make_talkative(model: Detector, image: Tensor, candidates: int = CANDIDATES) -> Detector:
    """A copy of a model with random weights whose post-processing has as much work as that of a trained model.

    With random weights either nothing passes the score threshold or everything. The last layers are scaled and shifted:
    the logits of every class have standard deviation 1.5 over ``image``, ``candidates`` of its (location, class) pairs
    pass the threshold, and boxes are a few strides wide, so that neighbors overlap (RetinaNet's do without a change).
    """
    model = copy.deepcopy(model).eval()
    outputs: Any = model.network(model.transform.batch([model.transform(image)]).tensor)
    logits = torch.cat([x[0].flatten(1) for x in outputs.cls_logits], dim=1)  # (C, P)
    head: Any = model.head  # an FCOSHead or a RetinaNetHead
    layer = head.classification_head.cls_logits
    gain = 1.5 / logits.std(dim=1).clamp(min=1e-12)  # (C,)
    shift = (layer.bias - logits.mean(dim=1)) * gain
    normal = gain[:, None] * (logits - layer.bias[:, None]) + shift[:, None]
    least = normal.flatten().topk(min(candidates, normal.numel())).values[-1]
    probability = max(_set_boxes(model) if isinstance(model, FCOS) else model.config.score_threshold, 1e-4)
    layer.weight *= gain[:, None, None, None]
    layer.bias.copy_(shift - least + math.log(probability / (1 - probability)))
    return model


def _set_boxes(model: FCOS) -> float:
    """Set the biases for boxes of four strides and centerness 1/2.

    Returns:
        The class probability at which the score then equals the threshold.
    """
    config = model.config
    head: Any = model.head  # its layers are not annotated
    tower = head.regression_head if config.centerness_on == "regression" else head.classification_head
    tower.bbox_ctrness.bias.zero_()
    stride = 1 if config.regression_unit == "stride" else 32
    layer = head.regression_head.bbox_reg
    raw = math.log(4 * stride) if config.regression == "exp" else 4 * stride
    layer.bias.fill_(raw / math.e if config.scale == "exp" else raw)  # scales are initialized to 1
    if config.threshold_on == "classification" or config.score == "classification":
        return config.score_threshold
    # the score is the class probability times the centerness, or the square root of that
    return min(2 * config.score_threshold ** (2 if config.score == "sqrt" else 1), 0.99)
