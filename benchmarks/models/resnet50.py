"""Torchvision's FCOS with ResNet50 as its pretrained recipe has it, and the least that its convolutions take."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import fcos_fast
from benchmarks.data import random_boxes
from fcos_fast.precision import choose_precision

CLASSES, BOXES = 91, 20
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
IMAGES = 16 if DEVICE.type == "cuda" else 2
DTYPE, _ = choose_precision("auto", DEVICE)
"""What a user of ``precision="auto"`` gets on this machine."""
LAYOUTS = {"channels-last": True} if torch.float32 != DTYPE else {"NCHW": False, "channels-last": True}
"""Name to whether it is channels-last; convolutions of 16 bits are made for it, for float32 both are of interest."""


def build(device: str, channels_last: bool = False) -> FCOS:
    """Frozen norms, three trainable stages; random weights whose head finds hundreds of candidates per image."""
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50",
        weights=None,
        trainable_layers=3,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    model = FCOS(backbone, CLASSES)
    for name, module in backbone.named_modules():
        if isinstance(module, FrozenBatchNorm2d) and name.endswith("bn3"):
            module.weight.fill_(0.2)  # trained residuals are small; else activations grow from block to block
    head = model.head
    last = (
        (head.classification_head.cls_logits, 0.05, -4.0),
        (head.regression_head.bbox_reg, 0.03, 2.0),
        (head.regression_head.bbox_ctrness, 0.03, 0.0),
    )
    for conv, std, bias in last:
        nn.init.normal_(conv.weight, std=std)
        nn.init.constant_(conv.bias, bias)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return model.to(device, memory_format=memory_format)


@dataclass
class Way:
    """One way of running the model: torchvision's, or accelerated, in a precision and layout.

    Its model is made when it first runs, and keeps what training does to it.
    """

    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    accelerated: bool = False
    model: FCOS | None = None

    def ready(self, device: torch.device) -> FCOS:
        """The model on ``device``."""
        if self.model is None:
            self.model = build(device, self.channels_last)
            if self.accelerated:
                fcos_fast.accelerate(
                    self.model,
                    channels_last=self.channels_last,
                    precision=str(self.dtype).removeprefix("torch."),
                    fold_frozen_bn=True,
                    fuse_group_norm=True,
                    winograd=device.type == "cpu" and self.dtype == torch.float32,
                )
        return self.model

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager:
        """As a user of torchvision sets it; an accelerated model does by itself."""
        enabled = self.dtype != torch.float32 and not self.accelerated
        return torch.autocast(device.type, self.dtype if enabled else None, enabled=enabled)


def compared() -> Iterator[tuple[str, Way, Way]]:
    """What is compared, torchvision's way and ours: as a user finds torchvision, then likewise in every layout."""
    precision = str(DTYPE).removeprefix("torch.")
    for layout, channels_last in LAYOUTS.items():
        ours = {"dtype": DTYPE, "channels_last": channels_last, "accelerated": True}
        if not channels_last or len(LAYOUTS) == 1:
            title = f"{precision}, {layout}, against torchvision as shipped (float32, NCHW)"
            yield title, Way(), Way(**ours)
        if (DTYPE, channels_last) != (torch.float32, False):
            yield (
                f"{precision}, {layout}, against torchvision likewise",
                Way(DTYPE, channels_last),
                Way(**ours),
            )


def make_batch(device: str, size: tuple[int, int]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Noise with boxes."""
    images = [torch.rand(3, *size).to(device) for _ in range(IMAGES)]
    targets = [
        {"boxes": random_boxes(BOXES, 16, 400), "labels": torch.randint(1, CLASSES, (BOXES,))}
        for _ in range(IMAGES)
    ]
    return images, [{name: value.to(device) for name, value in target.items()} for target in targets]


def convolutions(training: bool, channels_last: bool) -> Callable[..., None]:
    """A row that runs the convolutions of the model alone, forward and, in training, backward."""
    calls: list[tuple[nn.Conv2d, Tensor]] = []

    def run(images: Sequence[Tensor], *_) -> None:
        if not calls:
            calls.extend(_calls_of(images, channels_last))
        dtype = DTYPE if torch.float32 != DTYPE else None
        autocast = torch.autocast(images[0].device.type, dtype, enabled=dtype is not None)
        with torch.set_grad_enabled(training), autocast:
            for conv, x in calls:
                out = conv(x)
                wanted = [t for t in (x, *conv.parameters()) if t.requires_grad]
                if training and wanted:
                    torch.autograd.grad(out, wanted, out.detach())

    return run


def _calls_of(images: Sequence[Tensor], channels_last: bool) -> list[tuple[nn.Conv2d, Tensor]]:
    """Every convolution that one pass over ``images`` calls, with an input of the size that it gets."""
    model = build(images[0].device, channels_last).eval()
    model.requires_grad_(True)
    for stage in ("conv1", "layer1"):
        model.backbone.body[stage].requires_grad_(False)
    calls = []
    hooks = [
        module.register_forward_hook(lambda conv, args, _: calls.append((conv, args[0])))
        for module in model.modules()
        if isinstance(module, nn.Conv2d)
    ]
    with torch.no_grad():
        model(list(images))
    for hook in hooks:
        hook.remove()
    frozen = {id(conv) for conv in model.backbone.body.layer1.modules()} | {id(model.backbone.body.conv1)}
    return [(conv, x.detach().to(DTYPE).requires_grad_(id(conv) not in frozen)) for conv, x in calls]
