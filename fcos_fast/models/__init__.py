"""Detectors built on :mod:`fcos_fast.ops`; they need torch alone."""

from fcos_fast.models.backbones import BACKBONES, build_backbone
from fcos_fast.models.config import DetectorConfig, FCOSConfig
from fcos_fast.models.detector import Detector
from fcos_fast.models.fcos import FCOS, fcos
from fcos_fast.models.head import HeadOutputs
from fcos_fast.models.packing import BatchPacker
from fcos_fast.models.presets import PRESETS
from fcos_fast.models.transform import ImageBatch

__all__ = [
    "BACKBONES",
    "FCOS",
    "PRESETS",
    "BatchPacker",
    "Detector",
    "DetectorConfig",
    "FCOSConfig",
    "HeadOutputs",
    "ImageBatch",
    "build_backbone",
    "fcos",
]
