"""Detectors built on :mod:`fcos_fast.ops`; they need torch alone."""

from fcos_fast.models.backbones import BACKBONES, build_backbone
from fcos_fast.models.config import STRIDES, FCOSConfig
from fcos_fast.models.fcos import FCOS, fcos
from fcos_fast.models.head import HeadOutputs
from fcos_fast.models.presets import PRESETS

__all__ = ["BACKBONES", "FCOS", "PRESETS", "STRIDES", "FCOSConfig", "HeadOutputs", "build_backbone", "fcos"]
