"""Detectors built on :mod:`fcos_fast.ops`; they need torch alone.

Names are imported when they are first used: the configurations and presets need no torch, so that the command line
answers ``--help`` and a mistyped option at once.
"""

import sys
from importlib import import_module
from types import ModuleType

_FILES = {
    "backbone": ("BACKBONES", "register_backbone"),
    "backbones": ("build_backbone",),
    "config": ("DetectorConfig", "FCOSConfig", "RetinaNetConfig", "config_from_dict"),
    "detector": ("Detector",),
    "detectors": ("DETECTORS", "build_detector"),
    "faster_rcnn_backbone": ("FasterRCNNBackbone", "IntermediateLayerGetter"),
    "fcos": ("FCOS", "fcos"),
    "head": ("HeadOutputs",),
    "packing": ("BatchPacker",),
    "presets": ("PRESETS",),
    "retinanet": ("RetinaNet", "retinanet"),
    "retinanet_head": ("RetinaNetOutputs",),
    "transform": ("ImageBatch",),
}
_FILE_OF = {name: file for file, names in _FILES.items() for name in names}

__all__ = sorted(_FILE_OF)


class _Package(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        """Importing a file sets it as an attribute; ``fcos`` and ``retinanet`` stay the functions in the files."""
        if not (name in _FILE_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str):
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_FILE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
