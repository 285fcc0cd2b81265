"""The detectors by name: what a checkpoint, a YAML file or a preset may hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fcos_fast.models.config import DetectorConfig, FCOSConfig, RetinaNetConfig
from fcos_fast.models.detector import Detector
from fcos_fast.models.fcos import FCOS
from fcos_fast.models.names import unknown_name
from fcos_fast.models.retinanet import RetinaNet

DETECTORS: dict[str, tuple[type[DetectorConfig], type[Detector]]] = {
    "fcos": (FCOSConfig, FCOS),
    "retinanet": (RetinaNetConfig, RetinaNet),
}
"""The name in the field ``detector`` of a configuration, to the type of that configuration and of its model."""


def config_from_dict(values: Mapping[str, Any]) -> DetectorConfig:
    """The configuration of any detector from its ``to_dict``; of an FCOS where ``detector`` is not among the values.

    Raises:
        ValueError: for a detector or a field that there is not, with the nearest ones.
    """
    name = values.get("detector", "fcos")
    if name not in DETECTORS:
        raise unknown_name("detector", name, DETECTORS)
    return DETECTORS[name][0].from_dict(values)


def build_detector(config: DetectorConfig) -> Detector:
    """The detector that ``config`` describes, with random weights."""
    return DETECTORS[config.detector][1](config)
