"""Exported detectors in OpenVINO. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fcos_fast.inference.exported import INPUTS, OUTPUTS, ExportedEngine, read_description
from fcos_fast.models.optional import import_optional

SECTION = "framework"
"""Name of the description in the runtime information of a model, which OpenVINO takes from the ONNX file."""


class OpenVinoEngine(ExportedEngine):
    """Runs an OpenVINO or ONNX file of ``fcos-fast export`` on the CPU, in float32.

    Args:
        path: an ``.xml`` file, with its ``.bin`` file beside it, or an ``.onnx`` file.
        threads: threads of one call; None: one per core.

    Raises:
        FileNotFoundError, ValueError: a file does not exist, or is not such a file.
        ModuleNotFoundError: openvino is not installed.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        openvino = import_optional("openvino", "OpenVINO files need", "openvino")
        path = Path(path)
        for file in (path, path.with_suffix(".bin")) if path.suffix == ".xml" else (path,):
            if not file.is_file():
                raise FileNotFoundError(f"{file} does not exist; give a file of `fcos-fast export`")
        core = openvino.Core()
        # elsewhere than on AVX2, the default is 16 bits
        options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads or 0}
        try:
            model = core.read_model(str(path))
            described = model.get_rt_info([SECTION]).value if model.has_rt_info([SECTION]) else {}
            self._request = core.compile_model(model, "CPU", options).create_infer_request()
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ValueError(
                f"{path} cannot be loaded by OpenVINO {openvino.__version__} ({reason})"
            ) from error
        description = {name: model.get_rt_info([SECTION, name]).astype(str) for name in described}
        super().__init__(*read_description(path, description))

    def run(self, images: np.ndarray, sizes: np.ndarray) -> Sequence[np.ndarray]:
        """As :meth:`ExportedEngine.run`."""
        found = self._request.infer(dict(zip(INPUTS, (images, sizes), strict=True)))
        return [found[name] for name in OUTPUTS]
