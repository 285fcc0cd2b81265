"""Builds the detector that a configuration describes."""

from __future__ import annotations

from fcos_fast.models.config import DetectorConfig, FCOSConfig, RetinaNetConfig
from fcos_fast.models.detector import Detector
from fcos_fast.models.fcos import FCOS
from fcos_fast.models.retinanet import RetinaNet

_MODEL_OF: dict[type[DetectorConfig], type[Detector]] = {FCOSConfig: FCOS, RetinaNetConfig: RetinaNet}


def build_detector(config: DetectorConfig) -> Detector:
    """Build the detector of a configuration, with random weights."""
    return _MODEL_OF[type(config)](config)
