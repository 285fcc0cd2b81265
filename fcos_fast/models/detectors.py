"""The detectors by name: what a checkpoint, a YAML file or a preset may hold."""

from __future__ import annotations

from fcos_fast.models.config import CONFIGS, DetectorConfig
from fcos_fast.models.detector import Detector
from fcos_fast.models.fcos import FCOS
from fcos_fast.models.retinanet import RetinaNet

MODELS: dict[str, type[Detector]] = {"fcos": FCOS, "retinanet": RetinaNet}

DETECTORS: dict[str, tuple[type[DetectorConfig], type[Detector]]] = {
    name: (config, MODELS[name]) for name, config in CONFIGS.items()
}
"""The name in the field ``detector`` of a configuration, to the type of that configuration and of its model."""


def build_detector(config: DetectorConfig) -> Detector:
    """The detector that ``config`` describes, with random weights."""
    return MODELS[config.detector](config)
