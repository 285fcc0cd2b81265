"""How long a detector takes on this machine, from the file to the boxes."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fcos_fast.data import read_image
from fcos_fast.models import FCOS, Detector
from fcos_fast.precision import autocast

STAGES = ("decode", "pre-process", "network", "post-process")
"""``decode``: from files to pixels. ``network``: backbone, pyramid and head. ``post-process``: threshold, top-k, boxes,
NMS. ``pre-process``: the rest of the call of the model: to the device, checks, resizing, normalising, padding, and the
boxes back to the image's own pixels."""

CANDIDATES = 1000
"""How many (location, class) pairs of an image a model with random weights is made to send to NMS."""


@dataclass(frozen=True)
class Timing:
    """Samples of one variant: milliseconds of each stage, (number of samples,), and what it found.

    Attributes:
        stages: by name, in the order of :data:`STAGES`.
        batch_size: images of a sample.
        detections: mean number per image.
    """

    stages: dict[str, np.ndarray]
    batch_size: int
    detections: float

    def summary(self) -> dict[str, Any]:
        """Plain numbers: medians of the stages, p20, p50 and p80 of the whole, images per second at the median."""
        whole = sum(self.stages.values())
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
    models: Mapping[str, tuple[Detector, torch.dtype]],
    files: Sequence[Path],
    batch_size: int = 1,
    repeats: int = 10,
    warmup: int = 2,
    on_sample: Callable[[], None] = lambda: None,
) -> dict[str, Timing]:
    """Time models on the same images, in turns, so that whatever else the machine does meets all of them alike.

    Args:
        models: by name: a model in evaluation mode on its device, and the dtype of its autocast (float32: none).
        files: images; each sample takes the next ``batch_size``, beginning again behind the last.
        batch_size: images of a sample.
        repeats: samples of each model.
        warmup: runs of each model before.
        on_sample: called after every run, ``len(models) * (warmup + repeats)`` times.
    """
    samples = {name: {stage: [] for stage in STAGES} for name in models}
    found = dict.fromkeys(models, 0)
    images = cycle(files)
    for turn in range(-warmup, repeats):
        batch = list(islice(images, batch_size))
        for name, (model, dtype) in models.items():
            times, detections = time_stages(model, dtype, batch)
            on_sample()
            if turn >= 0:
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
    """Milliseconds of each stage of one call, and its detections. The device is waited for between the stages."""
    device = model.transform.mean.device
    clock = _Clock(device)
    with torch.inference_mode(), autocast(dtype, device), clock.inside(model, "network", "postprocess"):
        begin = clock.now()
        images = [read_image(file) for file in files]
        decoded = clock.now()
        detections = model([image.to(device) for image in images])
        end = clock.now()
    inside = clock.milliseconds
    times = {"decode": decoded - begin, "network": inside["network"], "post-process": inside["postprocess"]}
    return times | {"pre-process": end - decoded - sum(inside.values())}, detections


class _Clock:
    """Times methods of a model while it runs, and the device with them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.milliseconds: dict[str, float] = {}

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter_ns() / 1e6

    @contextmanager
    def inside(self, model: Detector, *methods: str) -> Iterator[None]:
        """Within this block the calls of these methods are timed."""
        before = {name: vars(model).get(name) for name in methods}  # a compiled network is the model's own
        for name in methods:
            self.milliseconds[name] = 0.0
            setattr(model, name, self._timed(name, getattr(model, name)))
        try:
            yield
        finally:
            for name, own in before.items():
                delattr(model, name) if own is None else setattr(model, name, own)

    def _timed(self, name: str, method: Callable) -> Callable:
        def run(*args):
            begin = self.now()
            result = method(*args)
            self.milliseconds[name] += self.now() - begin
            return result

        return run


@torch.no_grad()
def make_talkative(model: Detector, image: Tensor, candidates: int = CANDIDATES) -> Detector:
    """A copy of a model with random weights whose post-processing has as much to do as that of a trained one.

    With random weights nothing passes the score threshold, or everything. The last layers are scaled and shifted: the
    logits of every class have standard deviation 1.5 over ``image``, ``candidates`` of its (location, class) pairs pass
    the threshold, and boxes are a few strides wide, so that neighbours overlap; RetinaNet's are so without help.
    """
    model = copy.deepcopy(model).eval()
    outputs = model.network(model.transform.batch([model.transform(image)]).tensor)
    logits = torch.cat([x[0].flatten(1) for x in outputs.cls_logits], dim=1)  # (C, P)
    layer = model.head.classification_head.cls_logits
    gain = 1.5 / logits.std(dim=1).clamp(min=1e-12)  # (C,)
    shift = (layer.bias - logits.mean(dim=1)) * gain
    normal = gain[:, None] * (logits - layer.bias[:, None]) + shift[:, None]
    least = normal.flatten().topk(min(candidates, normal.numel())).values[-1]
    probability = max(_set_boxes(model) if isinstance(model, FCOS) else model.config.score_threshold, 1e-4)
    layer.weight *= gain[:, None, None, None]
    layer.bias.copy_(shift - least + math.log(probability / (1 - probability)))
    return model


def _set_boxes(model: FCOS) -> float:
    """Give an FCOS boxes of four strides and centerness 1/2; the class probability that then passes the threshold."""
    config, head = model.config, model.head
    tower = head.regression_head if config.centerness_on == "regression" else head.classification_head
    tower.bbox_ctrness.bias.zero_()
    stride = 1 if config.regression_unit == "stride" else 32
    layer = head.regression_head.bbox_reg
    raw = math.log(4 * stride) if config.regression == "exp" else 4 * stride
    layer.bias.fill_(raw / math.e if config.scale == "exp" else raw)  # scales begin at 1
    if config.threshold_on == "classification" or config.score == "classification":
        return config.score_threshold
    # the score is that of the class times the centerness, or the root of it
    return min(2 * config.score_threshold ** (2 if config.score == "sqrt" else 1), 0.99)
