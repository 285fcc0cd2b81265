"""``python -m fcos_fast.export.openvino_file model.onnx model.xml``: an ONNX file of this package in OpenVINO's format.

A process of its own: OpenVINO's converter can crash in one that has run PyTorch's exporter.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from fcos_fast.errors import ExportError


def convert(source: Path, target: Path) -> None:
    """Convert in another process; writes ``target``, an ``.xml`` file, and the ``.bin`` file beside it.

    Raises:
        ExportError: OpenVINO failed; the message is its own.
    """
    command = [sys.executable, "-m", __name__, str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
        raise ExportError(f"OpenVINO cannot convert the ONNX model: {reason}")


def main(source: str, target: str) -> None:
    """The process of :func:`convert`."""
    import openvino

    openvino.save_model(openvino.Core().read_model(source), target, compress_to_fp16=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
