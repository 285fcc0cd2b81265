"""Runtimes of exported detectors, and the export of a checkpoint for them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fcos_fast import __version__
from fcos_fast.inference.exported import ExportedEngine
from fcos_fast.inference.fastest import cache_folder

RUNTIMES = ("onnxruntime", "openvino")
"""Packages that run exported detectors."""


def runtime_engine(runtime: str, path: Path, threads: int | None = None) -> ExportedEngine:
    """The engine of a file of ``fcos-fast export`` in one of :data:`RUNTIMES`; ``threads`` as for :func:`load`."""
    if threads is None and os.environ.get("OMP_NUM_THREADS", "").isdecimal():
        threads = int(os.environ["OMP_NUM_THREADS"])
    if runtime == "openvino":
        from fcos_fast.inference.openvino import OpenVinoEngine

        return OpenVinoEngine(path, threads)
    from fcos_fast.inference.onnx import OnnxEngine

    return OnnxEngine(path, threads)


def exported_copy(checkpoint: Path, changes: Mapping[str, Any]) -> Path:
    """The ONNX file of a checkpoint in :func:`~fcos_fast.inference.fastest.cache_folder`, exported if it is not there.

    Args:
        checkpoint: as for ``fcos_fast.load``.
        changes: fields of its configuration with other values.

    Raises:
        WriteError, OSError: the folder cannot be written.
        ExportError, ValueError, ModuleNotFoundError: as for :func:`fcos_fast.export.export`.
    """
    digest = hashlib.sha256(checkpoint.read_bytes())
    digest.update(repr((__version__, sorted(changes.items()))).encode())
    copy = cache_folder() / "exports" / f"{digest.hexdigest()[:24]}.onnx"
    if not copy.exists():
        from fcos_fast.export import export

        copy.parent.mkdir(parents=True, exist_ok=True)
        print(f"exporting {checkpoint} to {copy}, once", flush=True)
        export(checkpoint, copy, "onnx", **changes)
    return copy
