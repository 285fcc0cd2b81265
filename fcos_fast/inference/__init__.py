"""Detection with a trained model: ``load("best.pt").predict("image.jpg")``. Needs only NumPy and Pillow.

torch is imported by :func:`load` for a checkpoint, not for an exported model. Names are imported on first use.
"""

from typing import TYPE_CHECKING

from fcos_fast._lazy import lazy_names

if TYPE_CHECKING:
    from .detections import Detection as Detection
    from .detections import Detections as Detections
    from .engine import Engine as Engine
    from .engine import RawDetections as RawDetections
    from .loading import load as load
    from .predictor import Predictor as Predictor
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "detections": ["Detection", "Detections"],
            "engine": ["Engine", "RawDetections"],
            "loading": ["load"],
            "predictor": ["Predictor"],
        },
    )
