"""Diagnostics of the installation: ``python -m fcos_fast.info`` or ``fcos-fast info``.

It also works if torch, a binary or another part of the package fails to load, so it imports them only while printing.
"""

from __future__ import annotations

import importlib
import os
import platform
import sys
from pathlib import Path

ENVIRONMENT = {
    "FCOS_FAST_BACKEND": "auto, native or reference operators",
    "FCOS_FAST_SIMD": "baseline, avx2 or avx512; by default the widest that the CPU has",
    "FCOS_FAST_CHECK": "1: also check values on a GPU, which synchronizes",
    "FCOS_FAST_BUILD": "auto, cpu or cuda; read when the package is built",
    "FCOS_FAST_DEBUG": "1: the command line shows tracebacks",
    "FCOS_FAST_BCCD": "folder of the BCCD dataset (blood cells), for tests",
}


def _system() -> list[str]:
    return [f"python      {sys.version.split()[0]} on {platform.platform()}"]


def _torch() -> list[str]:
    import torch

    lines = [
        f"torch       {torch.__version__} (CUDA {torch.version.cuda or 'none'}), {torch.get_num_threads()} threads"
    ]
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(index)
            lines.append(
                f"cuda:{index}      {torch.cuda.get_device_name(index)}, compute capability {major}.{minor}"
            )
    else:
        lines.append("cuda        no device")
    return lines


def _package() -> list[str]:
    import fcos_fast

    return [f"fcos_fast   {fcos_fast.__version__} in {Path(fcos_fast.__file__).parent}"]


def _binaries() -> list[str]:
    from fcos_fast import _extension

    lines = []
    if _extension.cpu_error is None:
        binary = importlib.import_module("fcos_fast._C")
        lines.append(
            f"_C          {binary.simd()}, built with {binary.compiler} and torch {binary.build_torch}, "
            f"sources {binary.source_hash}"
        )
    else:
        lines.append(f"_C          NOT LOADED: {_extension.cpu_error}")
    cuda = f"NOT LOADED: {_extension.cuda_error}"
    if _extension.cuda_error is None:
        cuda = f"loaded, built for {importlib.import_module('fcos_fast._C').cuda_targets}"
    return [*lines, f"_C_cuda     {cuda}", f"backend     {_extension.current_backend()}"]


def _operators() -> list[str]:
    from fcos_fast import _extension, ops

    def runs(device: str) -> str:
        if _extension.current_backend() == "reference":
            return "reference"
        if _extension.missing(device) is None:
            return "native"
        return (
            "reference"
            if _extension.cpu_error is None and _extension.current_backend() == "auto"
            else "raises"
        )

    lines = ["", f"{'operator':26}{'cpu':12}cuda"]
    return [*lines, *(f"{name:26}{runs('cpu'):12}{runs('cuda')}" for name in ops.__all__)]


def _environment() -> list[str]:
    lines = ["", "environment"]
    return [
        *lines,
        *(f"{name:26}{os.environ.get(name, '-'):11} {meaning}" for name, meaning in ENVIRONMENT.items()),
    ]


def main(args: list[str] | None = None) -> int:
    """Print the diagnostics. Returns 0 if the native CPU operators run, otherwise 1."""
    if args:
        print(f"fcos_fast.info: unknown arguments {' '.join(args)}; it accepts none", file=sys.stderr)
        return 2
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # an ASCII terminal shows what it can
    failed = False
    for section in (_system, _torch, _package, _binaries, _operators, _environment):
        try:
            lines = section()
        except Exception as error:  # a broken part must not hide the others
            lines = [f"{section.__name__.strip('_'):12}BROKEN: {type(error).__name__}: {error}"]
        failed = failed or any("BROKEN" in line or "_C          NOT" in line for line in lines)
        print("\n".join(lines))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
