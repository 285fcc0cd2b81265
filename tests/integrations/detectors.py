"""Small torchvision detectors, and comparisons of their training steps and detections."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

import torch
import torchvision
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

NUM_CLASSES = 7
SIZES = {"min_size": 80, "max_size": 112}


class Pyramid(nn.Module):
    """Three small feature maps of strides 8, 16 and 32, with frozen norms, one of them without a convolution."""

    out_channels = 64

    def __init__(self, norm: type[nn.Module] = FrozenBatchNorm2d) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 64, 3, 4, 1, bias=False), norm(64), nn.ReLU(inplace=True))
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Conv2d(64, 64, 3, 2, 1, bias=i == 1, groups=2), norm(64), nn.ReLU(inplace=True))
            for i in range(3)
        )
        self.alone = norm(64)

    def forward(self, x: torch.Tensor) -> OrderedDict[str, torch.Tensor]:
        x = self.stem(x)
        features = OrderedDict()
        for i, stage in enumerate(self.stages):
            x = stage(x)
            features[str(i)] = self.alone(x)
        return features


def small_fcos(norm: type[nn.Module] = FrozenBatchNorm2d, **options) -> detection.FCOS:
    anchors = AnchorGenerator(((8,), (16,), (33,)), ((1.0,),) * 3)
    return detection.FCOS(Pyramid(norm), NUM_CLASSES, anchor_generator=anchors, **(SIZES | options))


def resnet_backbone(**options) -> nn.Module:
    """As torchvision builds it with pretrained weights: frozen norms and first stages."""
    extra = LastLevelP6P7(256, 256)
    return resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, returned_layers=[2, 3, 4], extra_blocks=extra, **options
    )


def resnet_fcos() -> detection.FCOS:
    return detection.FCOS(resnet_backbone(trainable_layers=3), NUM_CLASSES, **SIZES)


def mobilenet_fcos() -> detection.FCOS:
    """A backbone with one feature map, as in torchvision's documentation, without its last, slow layers."""
    backbone = torchvision.models.mobilenet_v2(weights=None, norm_layer=FrozenBatchNorm2d).features[:14]
    backbone.out_channels = 96
    anchors = AnchorGenerator(((16,),), ((1.0,),))
    return detection.FCOS(backbone, NUM_CLASSES, anchor_generator=anchors, **SIZES)


def small_retinanet() -> detection.RetinaNet:
    """With group norm in its head, as in ``retinanet_resnet50_fpn_v2``."""
    anchors = AnchorGenerator(((16, 20), (32, 40), (64, 80)), ((0.5, 1.0, 2.0),) * 3)
    head = RetinaNetHead(64, 6, NUM_CLASSES, norm_layer=partial(nn.GroupNorm, 32))
    return detection.RetinaNet(Pyramid(), NUM_CLASSES, anchor_generator=anchors, head=head, **SIZES)


def plain_retinanet() -> detection.RetinaNet:
    anchors = AnchorGenerator(((16,), (32,), (64,)), ((1.0,),) * 3)
    return detection.RetinaNet(Pyramid(), NUM_CLASSES, anchor_generator=anchors, **SIZES)


BUILDERS = [small_fcos, resnet_fcos, mobilenet_fcos, small_retinanet, plain_retinanet]


def prepare(model: nn.Module) -> nn.Module:
    """Norms near the statistics of the activations, and a head with many different detections of high scores."""
    generator = torch.Generator().manual_seed(1)
    last = {"cls_logits": (0.02, -3.0), "bbox_ctrness": (0.02, 2.0), "bbox_reg": (0.02, 0.5)}
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, (nn.BatchNorm2d, FrozenBatchNorm2d)):
                nn.init.uniform_(module.weight, 0.5, 1.0, generator=generator)
                nn.init.normal_(module.bias, std=0.1, generator=generator)
                nn.init.normal_(module.running_mean, std=0.1, generator=generator)
                nn.init.uniform_(module.running_var, 0.5, 1.5, generator=generator)
            elif isinstance(module, nn.Conv2d) and name.rpartition(".")[2] in last:
                std, bias = last[name.rpartition(".")[2]]
                module.weight.normal_(0, std, generator=generator)
                module.bias.fill_(bias)
            elif isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, generator=generator)
    return model


def train_step(model: nn.Module, batch) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Losses, and the gradient of every parameter that has one."""
    images, targets = batch
    dtype = next(model.parameters()).dtype
    model.train().zero_grad()
    losses = model([image.to(dtype) for image in images], targets)
    sum(losses.values()).backward()
    return losses, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def detect(model: nn.Module, images) -> list[dict[str, torch.Tensor]]:
    dtype = next(model.parameters()).dtype
    with torch.no_grad():
        return model.eval()([image.to(dtype) for image in images])


def assert_same_step(ours, theirs, tolerance: float) -> None:
    """Losses, and the gradient of every parameter, within a relative tolerance.

    A bias before a norm has a gradient of rounding errors alone: below a thousandth of all gradients together a
    gradient's own size says nothing.
    """
    (losses, gradients), (expected_losses, expected) = ours, theirs
    assert losses.keys() == expected_losses.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected_losses[name], rtol=tolerance, atol=0, check_dtype=False)
    assert gradients.keys() == expected.keys()
    least = 1e-3 * torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, gradient in gradients.items():
        error = (gradient - expected[name]).norm() / expected[name].norm().clamp(min=least)
        assert error <= tolerance, f"{name}: {error}"


def assert_same_detections(ours, theirs, rtol: float = 1e-5) -> None:
    assert sum(len(found["boxes"]) for found in theirs) > 50
    assert all(len(found["scores"].unique()) > 0.9 * len(found["scores"]) for found in theirs)
    for found, expected in zip(ours, theirs, strict=True):
        assert torch.equal(found["labels"], expected["labels"])
        torch.testing.assert_close(found["scores"], expected["scores"], rtol=rtol, atol=0)
        torch.testing.assert_close(found["boxes"], expected["boxes"], rtol=rtol, atol=10 * rtol)
