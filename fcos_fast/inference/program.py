"""Exported detectors in torch: programs of ``torch.export``, and those that AOTInductor has compiled."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fcos_fast.inference.exported import ExportedEngine, read_description

COMPILED = "/data/aotinductor/"
"""Folder in a ``.pt2`` file that AOTInductor alone writes."""


class ProgramEngine(ExportedEngine):
    """Runs a ``.pt2`` file of ``fcos-fast export`` on the CPU, with the native operators.

    Args:
        path: the file; one that AOTInductor has compiled contains machine code, so it must be from a trusted source.
        threads: threads of one call, for the whole process; None: as torch has them.

    Raises:
        FileNotFoundError, ValueError: the file does not exist, or is not such a file.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        import torch

        from fcos_fast import ops  # noqa: F401  (registers the operators that the program calls)

        with suppress(ModuleNotFoundError):
            import torchvision.ops  # noqa: F401  (deformable convolutions)

        if not Path(path).is_file():
            raise FileNotFoundError(f"{path} does not exist; give a file of `fcos-fast export`")
        try:
            with zipfile.ZipFile(path) as archive:
                is_compiled = any(COMPILED in name for name in archive.namelist())
            self._program, description = (_load_compiled if is_compiled else _load_program)(str(path))
        except Exception as error:  # torch raises errors of many types
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(f"{path} cannot be loaded by torch {torch.__version__} ({reason})") from error
        super().__init__(*read_description(path, description))
        if threads is not None:
            torch.set_num_threads(threads)

    def run(self, images: np.ndarray, sizes: np.ndarray) -> Sequence[np.ndarray]:
        """As :meth:`ExportedEngine.run`."""
        import torch

        with torch.inference_mode():
            return [x.numpy() for x in self._program(torch.from_numpy(images), torch.from_numpy(sizes))]


def _load_program(path: str) -> tuple[Callable[..., Any], Mapping[str, str]]:
    import torch

    description = {"format": ""}  # torch ignores an empty dictionary
    program = torch.export.load(path, extra_files=description)
    # They reject images whose highest level is a single cell, which the graph computes correctly.
    return program.module(check_guards=False), description


def _load_compiled(path: str) -> tuple[Callable[..., Any], Mapping[str, str]]:
    from torch._inductor import aoti_load_package

    program = aoti_load_package(path)
    return program, program.get_metadata()
