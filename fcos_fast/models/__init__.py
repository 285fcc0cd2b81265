"""Detectors built on :mod:`fcos_fast.ops`; they need only torch and numpy.

Names are imported on first use. Configurations and presets do not import torch, so the command line answers ``--help``
and mistyped options at once.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING

from fcos_fast._lazy import lazy_names

if TYPE_CHECKING:
    from .backbone import BACKBONES as BACKBONES
    from .backbone import register_backbone as register_backbone
    from .backbones import build_backbone as build_backbone
    from .config import DetectorConfig as DetectorConfig
    from .config import FCOSConfig as FCOSConfig
    from .config import RetinaNetConfig as RetinaNetConfig
    from .detector import Detector as Detector
    from .detectors import build_detector as build_detector
    from .faster_rcnn_backbone import FasterRCNNBackbone as FasterRCNNBackbone
    from .faster_rcnn_backbone import IntermediateLayerGetter as IntermediateLayerGetter
    from .fcos import FCOS as FCOS
    from .fcos import fcos as fcos
    from .head import HeadOutputs as HeadOutputs
    from .packing import BatchPacker as BatchPacker
    from .presets import PRESETS as PRESETS
    from .recommended import SIZES as SIZES
    from .retinanet import RetinaNet as RetinaNet
    from .retinanet import retinanet as retinanet
    from .retinanet_head import RetinaNetOutputs as RetinaNetOutputs
    from .transform import ImageBatch as ImageBatch
else:
    __getattr__, __dir__, __all__ = lazy_names(
        __name__,
        {
            "backbone": ["BACKBONES", "register_backbone"],
            "backbones": ["build_backbone"],
            "config": ["DetectorConfig", "FCOSConfig", "RetinaNetConfig"],
            "detector": ["Detector"],
            "detectors": ["build_detector"],
            "faster_rcnn_backbone": ["FasterRCNNBackbone", "IntermediateLayerGetter"],
            "fcos": ["FCOS", "fcos"],
            "head": ["HeadOutputs"],
            "packing": ["BatchPacker"],
            "presets": ["PRESETS"],
            "recommended": ["SIZES"],
            "retinanet": ["RetinaNet", "retinanet"],
            "retinanet_head": ["RetinaNetOutputs"],
            "transform": ["ImageBatch"],
        },
    )


class _Package(ModuleType):
    def __setattr__(self, name: str, value: object) -> None:
        """Importing a module sets it as an attribute; ``fcos`` and ``retinanet`` stay the functions."""
        if not (name in ("fcos", "retinanet") and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
