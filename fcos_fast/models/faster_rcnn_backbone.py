"""A backbone for torchvision's Faster R-CNN: feature maps of C2 to C5 with a pyramid."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fcos_fast.models.backbones import build_backbone
from fcos_fast.models.fpn import FPN, BackboneWithFPN
from fcos_fast.suggest import unknown_name


class FasterRCNNBackbone(BackboneWithFPN):
    """A backbone with a pyramid over C2 to C5, at strides 4 to 32, and max-pooled P5 at stride 64.

    For ``torchvision.models.detection.FasterRCNN(backbone, num_classes)``. Parameter names, and with a ResNet the
    outputs, are the same as of torchvision's ``resnet_fpn_backbone``.

    Args:
        name: a name of ``fcos_fast.models.BACKBONES``.
        trainable_stages: how many of its five stages train, counted from the last.
        channels: channels of every pyramid level.
        norm: norm of the backbone; torchvision uses ``frozen`` for pretrained weights.
        **options: options of the backbone.

    Attributes:
        out_channels: ``channels``.
    """

    def __init__(
        self,
        name: str = "resnet50",
        trainable_stages: int = 3,
        channels: int = 256,
        norm: str = "frozen",
        **options: Any,
    ) -> None:
        body = build_backbone(name, trainable_stages, norm=norm, **options)
        super().__init__(body, FPN(body.out_channels, channels, "max_pool", num_extra=1))
        self.out_channels = channels

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:  # type: ignore[override]  # as torchvision wants it
        """Images (B, 3, H, W) to maps (B, channels, ...) ``0`` to ``3`` of strides 4 to 32, and ``pool`` of 64."""
        return OrderedDict(zip(("0", "1", "2", "3", "pool"), super().forward(x), strict=True))


class IntermediateLayerGetter(nn.ModuleDict):
    """The outputs of some children of ``model``, under new names.

    As in torchvision, the children run in the order in which they were registered and keep their parameter names;
    those after the last requested one are dropped.

    Args:
        model: runs its children one after the other, like the ResNets here and in torchvision.
        return_layers: name of a child to the name of its output.

    Raises:
        ValueError: ``model`` has no such child; the message has the nearest names.

    Example:
        >>> getter = IntermediateLayerGetter(build_backbone("resnet18"), {"layer1": "c2", "layer3": "c4"})
        >>> maps = getter(images)  # {"c2": (B, 64, H / 4, W / 4), "c4": (B, 256, H / 16, W / 16)}
    """

    def __init__(self, model: nn.Module, return_layers: Mapping[str, str]) -> None:
        children = dict(model.named_children())
        for name in return_layers:
            if name not in children:
                raise unknown_name("layer", name, children)
        names = list(children)
        last = max(map(names.index, return_layers), default=-1)
        super().__init__({name: children[name] for name in names[: last + 1]})
        self.return_layers = dict(return_layers)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Input of the first child to the requested outputs, in the order of the children."""
        outputs: OrderedDict[str, Tensor] = OrderedDict()
        for name, module in self.items():
            x = module(x)
            if name in self.return_layers:
                outputs[self.return_layers[name]] = x
        return outputs
