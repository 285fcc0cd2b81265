"""FCOS and RetinaNet object detection whose hot operations are C++/CUDA extensions.

``fcos_fast.ops`` has the operators, ``fcos_fast.models`` the detectors. ``fcos_fast.accelerate``
makes torchvision's detectors faster. ``fcos_fast.load``, ``fcos_fast.fcos``, ``fcos_fast.retinanet`` and
``fcos_fast.backend`` are the other shortcuts of everyday use. Shortcuts and subpackages are imported when they are
first used: ``import fcos_fast`` alone imports neither torch nor a binary.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("fcos_fast")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0.0.0"

_SHORTCUTS = {
    "accelerate": "fcos_fast.integrations.accelerate",
    "backend": "fcos_fast._extension",
    "fcos": "fcos_fast.models",
    "keep_memory": "fcos_fast.memory",
    "load": "fcos_fast.engine.predict",
    "restore": "fcos_fast.integrations.accelerate",
    "retinanet": "fcos_fast.models",
}

_SUBPACKAGES = ("data", "engine", "integrations", "models", "ops", "reference")


def __getattr__(name: str):
    if name in _SUBPACKAGES:
        return import_module(f"fcos_fast.{name}")
    if name in _SHORTCUTS:
        return getattr(import_module(_SHORTCUTS[name]), name)
    raise AttributeError(f"module 'fcos_fast' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_SHORTCUTS, *_SUBPACKAGES})
