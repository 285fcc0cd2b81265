"""The backbones by name."""

from __future__ import annotations

import inspect
from typing import Any

# imported to register their backbones
from fcos_fast.models import darknet, dla, mobilenet, resnet  # noqa: F401
from fcos_fast.models.backbone import BACKBONES, Backbone
from fcos_fast.models.config import TIMM_PREFIX, check_backbone
from fcos_fast.models.timm_backbone import TimmBackbone


def build_backbone(name: str, trainable_stages: int = 5, **options: Any) -> Backbone:
    """Build a backbone with random weights; only its last ``trainable_stages`` of five stages train.

    Args:
        name: one of :data:`BACKBONES`, or ``timm:<name>`` for a model of the package timm.
        trainable_stages: 0 to 5.
        **options: options of the backbone, such as ``norm``.

    Raises:
        ValueError: unknown name, with the nearest ones.
        ModuleNotFoundError: timm is needed and not installed.
    """
    check_backbone(name)
    backbone = TimmBackbone(name, **options) if name.startswith(TIMM_PREFIX) else BACKBONES[name](**options)
    backbone.freeze(trainable_stages)
    return backbone


def backbone_options(name: str) -> set[str]:
    """The names of the options of a backbone."""
    return set(
        inspect.signature(TimmBackbone if name.startswith(TIMM_PREFIX) else BACKBONES[name]).parameters
    )
