"""Loading a model for detection."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from fcos_fast.inference.predictor import Predictor
from fcos_fast.precision import Precision


def load(
    path: str | Path,
    device: str = "auto",
    precision: Precision = "auto",
    *,
    lowest_score: float | None = None,
    iou_threshold: float | None = None,
    max_detections: int | None = None,
) -> Predictor:
    """Load a checkpoint for detection, with its model optimized for inference.

    Args:
        path: a ``best.pt`` or ``last.pt`` of ``fcos-fast train``, or a checkpoint of another implementation.
        device: ``auto``, ``cpu``, ``cuda``, ...
        precision: ``auto``: bfloat16 if the device is fast at it.
        lowest_score: find detections down to this score: lowers the ``score_threshold`` of the model if that is higher.
        iou_threshold: IoU above which a box suppresses one with a lower score, in place of the model's
            ``nms_threshold``.
        max_detections: maximum number of detections per image, in place of the model's.

    Raises:
        FileNotFoundError, ValueError: the file does not exist, or is not a checkpoint; an option is out of range.
    """
    from fcos_fast.engine.checkpoint import load_checkpoint, model_from_checkpoint
    from fcos_fast.inference.torch_engine import TorchEngine
    from fcos_fast.precision import choose_device

    target = choose_device(device)
    model, categories = model_from_checkpoint(load_checkpoint(path))
    lowest = None if lowest_score is None else min(lowest_score, model.config.score_threshold)
    changes = {"score_threshold": lowest, "nms_threshold": iou_threshold, "max_detections": max_detections}
    given: dict[str, Any] = {name: value for name, value in changes.items() if value is not None}
    model.config = replace(model.config, **given)
    return Predictor(TorchEngine(model.to(target).optimize_for_inference(precision), categories))
