"""The backbone of Faster R-CNN: a ResNet with a pyramid over C2 to C5, as ``torchvision.models.detection`` takes it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fcos_fast.models.backbones import build_backbone
from fcos_fast.models.fpn import FPN, BackboneWithFPN
from fcos_fast.suggest import unknown_name


class FasterRCNNBackbone(BackboneWithFPN):
    """A backbone with a pyramid over C2 to C5, at strides 4 to 32, and every second position of P5 at stride 64.

    Made for ``torchvision.models.detection.FasterRCNN(backbone, num_classes)``; parameter names and, with a ResNet,
    outputs are those of torchvision's ``resnet_fpn_backbone``.

    Args:
        name: a name of ``fcos_fast.models.BACKBONES``.
        trainable_stages: how many of its five stages train, counted from the last.
        channels: of every level of the pyramid.
        norm: of the backbone; ``frozen`` is what torchvision takes for pretrained weights.
        **options: of the backbone.

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

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Images (B, 3, H, W) to maps (B, channels, ...) ``0`` to ``3`` of strides 4 to 32, and ``pool`` of 64."""
        return OrderedDict(zip(("0", "1", "2", "3", "pool"), super().forward(x), strict=True))


class IntermediateLayerGetter(nn.ModuleDict):
    """Outputs of some of the modules that ``model`` runs one after the other, by new names.

    As in torchvision, the modules are the children of ``model`` in the order in which they were registered, with their
    own parameter names; what comes after the last that is asked for is left out.

    Args:
        model: runs its children one after the other, as the ResNets here and in torchvision do.
        return_layers: name of a child to the name of its output.

    Raises:
        ValueError: ``model`` has no such child; the message names the nearest.

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
        """What the first of the modules takes, to the outputs in the order in which they come about."""
        outputs = OrderedDict()
        for name, module in self.items():
            x = module(x)
            if name in self.return_layers:
                outputs[self.return_layers[name]] = x
        return outputs
