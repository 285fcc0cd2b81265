"""Runtimes of exported detectors, and the export of a checkpoint for them."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Mapping
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

from fcos_fast import __version__
from fcos_fast.inference.exported import ExportedEngine
from fcos_fast.inference.fastest import cache_folder

RUNTIMES = ("onnxruntime", "openvino")
"""Packages that run the exported file of a checkpoint."""

RUNTIMES_OF = {".onnx": ("onnxruntime", "openvino"), ".xml": ("openvino",), ".pt2": ("torch",)}
"""Suffix of an exported detector -> packages that run it, the format's own first."""

KEPT_EXPORTS = 10
"""Exported checkpoints in the cache; those that were not used for longest are deleted."""


def runtime_engine(runtime: str, path: Path, threads: int | None = None) -> ExportedEngine:
    """The engine of a file of ``fcos-fast export`` in one of :data:`RUNTIMES_OF`; ``threads`` as for :func:`load`."""
    if runtime == "torch":
        from fcos_fast.inference.program import ProgramEngine

        return ProgramEngine(path, threads)
    if threads is None and os.environ.get("OMP_NUM_THREADS", "").isdecimal():
        threads = int(os.environ["OMP_NUM_THREADS"])
    if runtime == "openvino":
        from fcos_fast.inference.openvino import OpenVinoEngine

        return OpenVinoEngine(path, threads)
    from fcos_fast.inference.onnx import OnnxEngine

    return OnnxEngine(path, threads)


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def exported_copy(checkpoint: Path, digest: str, changes: Mapping[str, Any]) -> Path:
    """The ONNX file of a checkpoint in :func:`~fcos_fast.inference.fastest.cache_folder`, exported if it is not there.

    Args:
        checkpoint: as for ``fcos_fast.load``.
        digest: :func:`file_digest` of the checkpoint when it was loaded.
        changes: fields of its configuration with other values.

    Raises:
        WriteError, OSError: the folder cannot be written.
        ExportError, ModuleNotFoundError: as for :func:`fcos_fast.export.export`.
        ValueError: the model cannot be exported, or the checkpoint has changed.
    """
    key = hashlib.sha256(repr((digest, __version__, sorted(changes.items()))).encode())
    copy = cache_folder() / "exports" / f"{key.hexdigest()[:24]}.onnx"
    if copy.exists():
        with suppress(OSError):
            copy.touch()  # used last
        return copy
    from fcos_fast.export import export

    if file_digest(checkpoint) != digest:
        raise ValueError(f"{checkpoint} has changed since it was loaded; load it again")
    copy.parent.mkdir(parents=True, exist_ok=True)
    print(f"exporting {checkpoint} to {copy}, once", file=sys.stderr, flush=True)
    with redirect_stdout(sys.stderr):  # the standard output belongs to the caller
        export(checkpoint, copy, "onnx", **changes)
    for old in sorted(copy.parent.glob("*.onnx"), key=lambda path: path.stat().st_mtime)[:-KEPT_EXPORTS]:
        old.unlink(missing_ok=True)
    return copy
