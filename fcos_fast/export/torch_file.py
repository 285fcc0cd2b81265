"""A detector as a ``.pt2`` file: a program of ``torch.export``, or one that AOTInductor has compiled."""

from __future__ import annotations

from pathlib import Path

import torch

from fcos_fast.data.categories import Categories
from fcos_fast.errors import ExportError
from fcos_fast.export.tracing import quiet, trace
from fcos_fast.inference.exported import describe
from fcos_fast.models import Detector


def save_program(model: Detector, categories: Categories, path: Path) -> None:
    """Write a program that torch runs; its description is in ``extra_files``."""
    program = trace(model)
    program.example_inputs = None  # zeros
    with quiet():
        torch.export.save(program, path, extra_files=describe(model.config, categories))


def save_compiled(model: Detector, categories: Categories, path: Path) -> None:
    """Write a program in machine code for processors like this one; its description is in its metadata.

    Raises:
        ExportError: there is no C++ compiler, or it failed.
    """
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        get_cpp_compiler()
    except Exception as error:  # its type has no public name
        raise ExportError(
            "the format aoti needs a C++ compiler, and there is none; install g++, or name one by the environment "
            "variable CXX"
        ) from error
    options = {
        "aot_inductor.metadata": describe(model.config, categories),
        "cpp.dynamic_threads": True,  # otherwise the number of threads now is fixed in the file
    }
    program = trace(model)
    try:
        with quiet(), torch.no_grad():
            aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)
    except RuntimeError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ExportError(f"AOTInductor cannot compile the detector: {reason}") from error
