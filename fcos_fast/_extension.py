"""Loads the compiled extensions and selects between native and reference operators."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from fcos_fast._source_hash import source_hash
from fcos_fast.errors import ExtensionError, ExtensionLoadError, ExtensionNotBuiltError

BACKENDS = ("auto", "native", "reference")

REBUILD = "rebuild with `pip install .` in the source folder, or set FCOS_FAST_BACKEND=reference to use plain PyTorch"


def _load_cpu() -> ExtensionError | None:
    folder = Path(__file__).parent
    if not list(folder.glob("_C.*")):
        return ExtensionNotBuiltError(f"fcos_fast._C is not built in {folder}; {REBUILD}")
    try:
        binary = importlib.import_module("fcos_fast._C")
    except (ImportError, OSError, RuntimeError) as error:
        return ExtensionLoadError(
            f"fcos_fast._C cannot be loaded with torch {torch.__version__}: {error}; {REBUILD}"
        )
    if source_hash() not in (None, binary.source_hash):
        warnings.warn(
            "fcos_fast: csrc has changed since the binary was built; run `make build`", stacklevel=2
        )
    return None


def _load_cuda() -> ExtensionError | None:
    if torch.version.cuda is None:
        return ExtensionNotBuiltError(f"torch {torch.__version__} is built without CUDA")
    binaries = sorted(Path(__file__).parent.glob("_C_cuda.*"))
    if not binaries:
        return ExtensionNotBuiltError(
            "fcos_fast._C_cuda is not built; reinstall with FCOS_FAST_BUILD=cuda, which reports what is missing"
        )
    try:
        torch.ops.load_library(str(binaries[0]))
    except (OSError, RuntimeError) as error:
        return ExtensionLoadError(
            f"{binaries[0].name} cannot be loaded with torch {torch.__version__}: {error.__cause__ or error}; {REBUILD}"
        )
    return None


cpu_error: ExtensionError | None = _load_cpu()
"""Why the native CPU operators are unavailable, or None."""

cuda_error: ExtensionError | None = cpu_error or _load_cuda()
"""Why the native CUDA operators are unavailable, or None. They need the schemas in the CPU extension."""


def _backend_from_environment() -> str:
    name = os.environ.get("FCOS_FAST_BACKEND") or "auto"
    if name not in BACKENDS:
        raise ValueError(f"FCOS_FAST_BACKEND={name!r}; expected one of {', '.join(BACKENDS)}")
    return name


_backend = _backend_from_environment()


def current_backend() -> str:
    """The selected backend: ``auto``, ``native`` or ``reference``."""
    return _backend


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Context manager that selects the backend: ``auto``, ``native`` (raise if unavailable) or ``reference``.

    The selection is global to the process, not to a thread.
    """
    global _backend
    if name not in BACKENDS:
        raise ValueError(f"backend({name!r}); expected one of {', '.join(BACKENDS)}")
    previous, _backend = _backend, name
    try:
        yield
    finally:
        _backend = previous


def missing(device: torch.device | str) -> ExtensionError | None:
    """Why the native operators are unavailable on ``device``, or None."""
    kind = torch.device(device).type
    if kind in ("cpu", "meta"):  # the fake kernels are registered with the schemas
        return cpu_error
    if kind == "cuda":
        if cuda_error is not None or not torch.cuda.is_available():
            return cuda_error
        index = torch.device(device).index
        return _architecture_error(torch.cuda.current_device() if index is None else index)
    return ExtensionNotBuiltError(f"fcos_fast has native operators for cpu and cuda, but not for {kind}")


def capability_is_covered(capability: tuple[int, int], targets: str) -> bool:
    """Whether a binary built for ``targets`` (such as "sm_80 compute_90") runs on a GPU of this compute capability.

    Machine code runs on the same major version with an equal or higher minor version; PTX on all newer GPUs.
    """
    for target in targets.split():
        kind, number = target.split("_")
        digits = "".join(filter(str.isdigit, number))
        built = int(digits[:-1]), int(digits[-1])
        if kind == "sm" and built[0] == capability[0] and built[1] <= capability[1]:
            return True
        if kind == "compute" and built <= capability:
            return True
    return False


@functools.cache
def _architecture_error(index: int) -> ExtensionError | None:
    targets = importlib.import_module("fcos_fast._C").cuda_targets
    capability = torch.cuda.get_device_capability(index)
    if capability_is_covered(capability, targets):
        return None
    number = "{}.{}".format(*capability)
    return ExtensionLoadError(
        f"fcos_fast._C_cuda is built for {targets}, but cuda:{index} has compute capability {number}; reinstall with "
        f"TORCH_CUDA_ARCH_LIST={number}"
    )


_warned: set[str] = set()


def is_on_gpu(tensor: Tensor) -> bool:
    """Whether the tensor is on a CUDA device; replaced in the emulation of the CUDA kernels."""
    return tensor.is_cuda


def use_native(tensor: Tensor, *others: Tensor) -> bool:
    """Whether to run the native operator on these tensors.

    float64 on CUDA runs the reference: it is only needed for gradient checks, and kernels would add a sixth to the
    build time. Other devices without native operators also run the reference, with a warning the first time.

    Raises:
        ExtensionError: if there is no native operator and the backend is ``native``, or if the extension is not built
            at all and the backend is ``auto``.
    """
    if _backend == "reference":
        return False
    error = missing(tensor.device)
    if error is None:
        if not is_on_gpu(tensor) or all(t.dtype != torch.float64 for t in (tensor, *others)):
            return True
        if _backend == "native":
            raise ExtensionNotBuiltError(
                'there are no CUDA kernels for float64; use float32, or backend("reference")'
            )
        return False
    if _backend == "native" or cpu_error is not None:
        raise error
    kind = tensor.device.type
    if kind not in _warned:
        _warned.add(kind)
        warnings.warn(f"fcos_fast: using plain PyTorch operators on {kind}: {error}", stacklevel=3)
    return False
