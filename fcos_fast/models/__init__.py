"""Detectors built on :mod:`fcos_fast.ops`; they need torch alone."""

from fcos_fast.models.backbone import BACKBONES, register_backbone
from fcos_fast.models.backbones import build_backbone
from fcos_fast.models.config import DetectorConfig, FCOSConfig, RetinaNetConfig
from fcos_fast.models.detector import Detector
from fcos_fast.models.detectors import DETECTORS, build_detector, config_from_dict
from fcos_fast.models.faster_rcnn_backbone import FasterRCNNBackbone, IntermediateLayerGetter
from fcos_fast.models.fcos import FCOS, fcos
from fcos_fast.models.head import HeadOutputs
from fcos_fast.models.packing import BatchPacker
from fcos_fast.models.presets import PRESETS
from fcos_fast.models.retinanet import RetinaNet, retinanet
from fcos_fast.models.retinanet_head import RetinaNetOutputs
from fcos_fast.models.transform import ImageBatch

__all__ = [
    "BACKBONES",
    "DETECTORS",
    "FCOS",
    "PRESETS",
    "BatchPacker",
    "Detector",
    "DetectorConfig",
    "FCOSConfig",
    "FasterRCNNBackbone",
    "HeadOutputs",
    "ImageBatch",
    "IntermediateLayerGetter",
    "RetinaNet",
    "RetinaNetConfig",
    "RetinaNetOutputs",
    "build_backbone",
    "build_detector",
    "config_from_dict",
    "fcos",
    "register_backbone",
    "retinanet",
]
