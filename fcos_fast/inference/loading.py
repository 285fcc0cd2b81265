"""Loading a model for detection."""

from __future__ import annotations

from pathlib import Path

from fcos_fast.inference.exported import ExportedEngine
from fcos_fast.inference.predictor import Predictor
from fcos_fast.precision import Precision

EXPORTED_SUFFIXES = (".onnx", ".xml")
"""Suffixes of exported detectors."""


def is_exported(path: str | Path) -> bool:
    """Whether ``path`` is named as a file of ``fcos-fast export``, and not as a checkpoint."""
    return Path(path).suffix in EXPORTED_SUFFIXES


def exported_engine(path: str | Path, threads: int | None = None) -> ExportedEngine:
    """The engine of a file of ``fcos-fast export``; see :func:`load`. ``threads``: of one call; None: one per core."""
    if Path(path).suffix == ".xml":
        from fcos_fast.inference.openvino import OpenVinoEngine

        return OpenVinoEngine(path, threads)
    from fcos_fast.inference.onnx import OnnxEngine

    return OnnxEngine(path, threads)


def load(path: str | Path, device: str = "auto", precision: Precision = "auto") -> Predictor:
    """Load a checkpoint for detection, with its model optimized for inference, or an exported detector.

    Args:
        path: a ``best.pt`` or ``last.pt`` of ``fcos-fast train``, or a checkpoint of another implementation; or a file
            of ``fcos-fast export`` with its suffix, ``model.onnx`` or ``model.xml`` (OpenVINO), which is run
            without torch.
        device: ``auto``, ``cpu``, ``cuda``, ...; ``auto`` or ``cpu`` for an exported detector.
        precision: ``auto``: bfloat16 if the device is fast at it; ``auto`` or ``float32`` for an exported detector.

    Raises:
        FileNotFoundError, ValueError: the file does not exist, is neither, or does not run on ``device``.
        ModuleNotFoundError: the runtime of the exported detector is not installed.
    """
    if is_exported(path):
        if device not in ("auto", "cpu") or precision not in ("auto", "float32"):
            raise ValueError(
                f"{path} is an exported detector, which runs on the CPU in float32; got device {device!r} and "
                f"precision {precision!r}"
            )
        return Predictor(exported_engine(path))
    from fcos_fast.engine.checkpoint import load_checkpoint, model_from_checkpoint
    from fcos_fast.inference.torch_engine import TorchEngine
    from fcos_fast.precision import choose_device

    target = choose_device(device)
    model, categories = model_from_checkpoint(load_checkpoint(path))
    return Predictor(TorchEngine(model.to(target).optimize_for_inference(precision), categories))
