"""Loading a model for detection."""

from __future__ import annotations

from pathlib import Path

from fcos_fast.inference.predictor import Predictor
from fcos_fast.precision import Precision


def load(path: str | Path, device: str = "auto", precision: Precision = "auto") -> Predictor:
    """Load a checkpoint for detection, with its model optimized for inference.

    Args:
        path: a ``best.pt`` or ``last.pt`` of ``fcos-fast train``, or a checkpoint of another implementation.
        device: ``auto``, ``cpu``, ``cuda``, ...
        precision: ``auto``: bfloat16 if the device is fast at it.

    Raises:
        FileNotFoundError, ValueError: the file does not exist, or is not a checkpoint.
    """
    from fcos_fast.engine.checkpoint import load_checkpoint, model_from_checkpoint
    from fcos_fast.inference.torch_engine import TorchEngine
    from fcos_fast.precision import choose_device

    target = choose_device(device)
    model, categories = model_from_checkpoint(load_checkpoint(path))
    return Predictor(TorchEngine(model.to(target).optimize_for_inference(precision), categories))
