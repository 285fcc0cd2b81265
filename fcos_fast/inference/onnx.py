"""Exported detectors in ONNX Runtime. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fcos_fast.inference.exported import INPUTS, OUTPUTS, ExportedEngine, read_description
from fcos_fast.models.optional import import_optional


class OnnxEngine(ExportedEngine):
    """Runs an ONNX file of ``fcos-fast export`` on the CPU.

    Args:
        path: the file.
        threads: threads of one call; None: one per core.

    Raises:
        FileNotFoundError, ValueError: the file does not exist, or is not such a file.
        ModuleNotFoundError: onnxruntime is not installed.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        runtime = import_optional("onnxruntime", "ONNX files need", "export")
        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} does not exist; give a file of `fcos-fast export`")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime has its own types
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"{path} cannot be loaded by onnxruntime {runtime.__version__} ({reason})"
            ) from error
        super().__init__(*read_description(path, self._session.get_modelmeta().custom_metadata_map))

    def run(self, images: np.ndarray, sizes: np.ndarray) -> Sequence[np.ndarray]:
        """As :meth:`ExportedEngine.run`."""
        outputs: Sequence[np.ndarray] = self._session.run(
            OUTPUTS, dict(zip(INPUTS, (images, sizes), strict=True))
        )
        return outputs
