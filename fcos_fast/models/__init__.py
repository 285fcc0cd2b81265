"""Detectors built on :mod:`fcos_fast.ops`; they need only torch and numpy.

Names are imported on first use. Configurations and presets do not import torch, so the command line answers ``--help``
and mistyped options at once.
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
        """Keep ``fcos`` and ``retinanet`` the functions when Python sets the modules of the same names."""
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
