"""Trained detectors as files for other runtimes: ``export("best.pt", "model.onnx")``.

Needs torch, and for ONNX the extra ``export``. What reads an ONNX file needs neither: :mod:`fcos_fast.inference`.
"""

from typing import TYPE_CHECKING

from fcos_fast._lazy import lazy_names

if TYPE_CHECKING:
    from .onnx_file import onnx_model as onnx_model
    from .quantized import export_int8 as export_int8
    from .run import export as export
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {"onnx_file": ["onnx_model"], "quantized": ["export_int8"], "run": ["export"]},
    )
