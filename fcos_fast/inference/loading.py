"""Loading a model for detection."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from fcos_fast.inference.exported import ExportedEngine
from fcos_fast.inference.predictor import Predictor
from fcos_fast.models.config import DetectorConfig
from fcos_fast.precision import Precision

EXPORTED_SUFFIXES = (".onnx", ".xml")
"""Suffixes of exported detectors."""


def is_exported(path: str | Path) -> bool:
    """Whether ``path`` is named as a file of ``fcos-fast export``, and not as a checkpoint."""
    return Path(path).suffix in EXPORTED_SUFFIXES


def exported_engine(
    path: str | Path, device: str = "auto", precision: Precision = "auto", threads: int | None = None
) -> ExportedEngine:
    """The engine of a file of ``fcos-fast export``; see :func:`load`. ``threads``: of one call; None: one per core."""
    if device not in ("auto", "cpu") or precision not in ("auto", "float32"):
        raise ValueError(
            f"{path} is an exported detector, which runs on the CPU in float32; got device {device!r} and "
            f"precision {precision!r}"
        )
    if Path(path).suffix == ".xml":
        from fcos_fast.inference.openvino import OpenVinoEngine

        return OpenVinoEngine(path, threads)
    from fcos_fast.inference.onnx import OnnxEngine

    return OnnxEngine(path, threads)


def load(
    path: str | Path,
    device: str = "auto",
    precision: Precision = "auto",
    *,
    lowest_score: float | None = None,
    iou_threshold: float | None = None,
    max_detections: int | None = None,
) -> Predictor:
    """Load a checkpoint for detection, with its model optimized for inference, or an exported detector.

    Args:
        path: a ``best.pt`` or ``last.pt`` of ``fcos-fast train``, or a checkpoint of another implementation; or a file
            of ``fcos-fast export``, ``model.onnx`` or ``model.xml`` (OpenVINO), which is run without torch.
        device: ``auto``, ``cpu``, ``cuda``, ...; ``auto`` or ``cpu`` for an exported detector.
        precision: ``auto``: bfloat16 if the device is fast at it; ``auto`` or ``float32`` for an exported detector.
        lowest_score: find detections down to this score: lowers the ``score_threshold`` of the model if that is higher.
        iou_threshold: IoU above which a box suppresses one with a lower score, in place of the model's
            ``nms_threshold``.
        max_detections: maximum number of detections per image, in place of the model's.

    Raises:
        FileNotFoundError, ValueError: the file does not exist, or is neither; an option is out of range, or an exported
            detector cannot change it.
        ModuleNotFoundError: the runtime of the exported detector is not installed.
    """
    given = (lowest_score, iou_threshold, max_detections)
    if is_exported(path):
        return Predictor(_load_exported(path, device, precision, *given))
    from fcos_fast.engine.checkpoint import load_checkpoint, model_from_checkpoint
    from fcos_fast.inference.torch_engine import TorchEngine
    from fcos_fast.precision import choose_device

    target = choose_device(device)
    model, categories = model_from_checkpoint(load_checkpoint(path))
    model.config = replace(model.config, **_changes(model.config, *given))
    return Predictor(TorchEngine(model.to(target).optimize_for_inference(precision), categories))


def _changes(
    config: DetectorConfig,
    lowest_score: float | None,
    iou_threshold: float | None,
    max_detections: int | None,
) -> dict[str, Any]:
    """The fields of ``config`` that the options of :func:`load` change."""
    lowest = None if lowest_score is None else min(lowest_score, config.score_threshold)
    wanted = {"score_threshold": lowest, "nms_threshold": iou_threshold, "max_detections": max_detections}
    return {name: value for name, value in wanted.items() if value not in (None, getattr(config, name))}


def _load_exported(path: str | Path, device: str, precision: Precision, *given: Any) -> ExportedEngine:
    """The engine of an exported detector, if it is what the options of :func:`load` ask for."""
    engine = exported_engine(path, device, precision)
    for name, value in _changes(engine.config, *given).items():
        raise ValueError(
            f"{path}: its {name} is {getattr(engine.config, name)} and cannot be changed to {value}; export the "
            f"checkpoint again with --{name} {value}"
        )
    return engine
