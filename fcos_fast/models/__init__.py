"""Detectors built on :mod:`fcos_fast.ops`; they need torch alone.

Names are imported when they are first used: the configurations and presets need no torch, so that the command line
answers ``--help`` and a mistyped option at once.
"""

import sys
from types import ModuleType

from fcos_fast._lazy import lazy_names

_FILES = {
    "backbone": ("BACKBONES", "register_backbone"),
    "backbones": ("build_backbone",),
    "config": ("DetectorConfig", "FCOSConfig", "RetinaNetConfig"),
    "detector": ("Detector",),
    "detectors": ("build_detector",),
    "faster_rcnn_backbone": ("FasterRCNNBackbone", "IntermediateLayerGetter"),
    "fcos": ("FCOS", "fcos"),
    "head": ("HeadOutputs",),
    "packing": ("BatchPacker",),
    "presets": ("PRESETS",),
    "retinanet": ("RetinaNet", "retinanet"),
    "retinanet_head": ("RetinaNetOutputs",),
    "transform": ("ImageBatch",),
}
__getattr__, __dir__, __all__ = lazy_names(__name__, _FILES)


class _Package(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        """Importing a file sets it as an attribute; ``fcos`` and ``retinanet`` stay the functions in the files."""
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
