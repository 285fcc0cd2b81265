"""The backbones by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from fcos_fast.models.backbone import Backbone
from fcos_fast.models.darknet import DarkNet19
from fcos_fast.models.names import unknown_name
from fcos_fast.models.resnet import BasicBlock, Bottleneck, ResNet

BACKBONES: dict[str, Callable[..., Backbone]] = {
    "resnet18": partial(ResNet, BasicBlock, (2, 2, 2, 2)),
    "resnet34": partial(ResNet, BasicBlock, (3, 4, 6, 3)),
    "resnet50": partial(ResNet, Bottleneck, (3, 4, 6, 3)),
    "resnet101": partial(ResNet, Bottleneck, (3, 4, 23, 3)),
    "resnet152": partial(ResNet, Bottleneck, (3, 8, 36, 3)),
    "darknet19": DarkNet19,
}


def build_backbone(name: str, trainable_stages: int = 5, **options) -> Backbone:
    """Build a backbone of :data:`BACKBONES`, all but its last ``trainable_stages`` of five stages frozen.

    Raises:
        ValueError: for an unknown name, with the nearest ones.
    """
    if name not in BACKBONES:
        raise unknown_name("backbone", name, BACKBONES)
    backbone = BACKBONES[name](**options)
    backbone.freeze(trainable_stages)
    return backbone
