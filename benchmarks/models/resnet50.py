"""torchvision's FCOS and RetinaNet with ResNet50, as in their pretrained recipes, and their convolutions alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import fcos_fast
from benchmarks.data import random_boxes
from fcos_fast.precision import choose_precision

Model = FCOS | RetinaNet
KINDS: dict[str, type[nn.Module]] = {"FCOS": FCOS, "RetinaNet": RetinaNet}
CLASSES, BOXES = 91, 20
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPE, _ = choose_precision("auto", DEVICE)
"""The dtype that ``precision="auto"`` selects on this machine."""
FORMATS = {"channels-last": True} if torch.float32 != DTYPE else {"NCHW": False, "channels-last": True}
"""Name -> whether it is channels-last. 16-bit convolutions are optimized for it; for float32, both are of interest."""


def images_that_fit() -> int:
    """Batch size: two on a CPU, up to sixteen on a GPU, which must hold the activations of several models."""
    if DEVICE.type == "cpu":
        return 2
    return max(2, min(16, torch.cuda.get_device_properties(DEVICE).total_memory // (5 * 2**30)))


IMAGES = images_that_fit()


def build(kind: str, device: str, channels_last: bool = False) -> Model:
    """Frozen norms, three trainable stages, and random weights with hundreds of candidates per image."""
    torch.manual_seed(0)
    backbone = resnet_fpn_backbone(
        backbone_name="resnet50",
        weights=None,
        trainable_layers=3,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(256, 256),
    )
    model = KINDS[kind](backbone, CLASSES)
    for name, module in backbone.named_modules():
        if isinstance(module, FrozenBatchNorm2d) and name.endswith("bn3"):
            module.weight.fill_(0.2)  # like trained weights; otherwise activations grow with every block
    last = {
        "cls_logits": (0.05, -4.0),
        "bbox_reg": (0.03, 2.0 if kind == "FCOS" else 0.0),
        "bbox_ctrness": (0.03, 0.0),
    }
    for name, module in model.head.named_modules():
        if name.rpartition(".")[2] in last:
            std, bias = last[name.rpartition(".")[2]]
            nn.init.normal_(module.weight, std=std)
            nn.init.constant_(module.bias, bias)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return model.to(device, memory_format=memory_format)


@dataclass
class Way:
    """One way of running a model: plain torchvision or accelerated, in a precision and memory format.

    The model is created in the first run and is changed by training.

    Attributes:
        compiled: compile backbone and head; torchvision's other parts would break the graph at every image.
        cuda_graphs: backbone and head as CUDA graphs; torchvision's losses synchronize, so they cannot be captured.
    """

    kind: str = "FCOS"
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    accelerated: bool = False
    compiled: bool = False
    cuda_graphs: bool = False
    model: Model | None = None

    def ready(self, images: Sequence[Tensor], training: bool) -> Model:
        """The model on the device of the images."""
        if self.model is None:
            device = images[0].device
            self.model = build(self.kind, device, self.channels_last).train(training)
            if self.accelerated:
                self._accelerate(device)
            elif self.compiled:
                self.model.backbone.compile()
                self.model.head.compile()
            elif self.cuda_graphs:
                self._capture(images)
        return self.model

    def _accelerate(self, device: torch.device) -> None:
        fcos_fast.accelerate(
            self.model,
            channels_last=self.channels_last,
            precision=str(self.dtype).removeprefix("torch."),
            fold_frozen_bn=True,
            fuse_group_norm=self.kind == "FCOS",  # RetinaNet v1 has no group norm
            winograd=device.type == "cpu" and self.dtype == torch.float32,
            compile=self.compiled,
            cuda_graphs=self.cuda_graphs,
        )

    def _capture(self, images: Sequence[Tensor]) -> None:
        """Capture torchvision's backbone and head, forward and backward, for images of this size."""
        model = self.model
        batch = model.transform(images)[0].tensors
        with self.autocast(batch.device):
            with torch.no_grad():
                features = list(model.backbone(batch).values())
            features = [x.detach().requires_grad_() for x in features]
            torch.cuda.make_graphed_callables(
                (model.backbone, model.head), ((batch,), (features,)), allow_unused_input=True
            )

    def autocast(self, device: torch.device) -> contextlib.AbstractContextManager:
        """The autocast context of a torchvision user; accelerated models set it themselves."""
        enabled = self.dtype != torch.float32 and not self.accelerated
        # The weight cache of autocast is incompatible with CUDA graphs.
        cache = not self.cuda_graphs
        return torch.autocast(
            device.type, self.dtype if enabled else None, enabled=enabled, cache_enabled=cache
        )


def ways(kind: str) -> dict[str, tuple[Way, Way]]:
    """Title -> (torchvision, ours): against torchvision as shipped, and with the same precision and memory format."""
    precision = str(DTYPE).removeprefix("torch.")
    compared = {}
    for name, channels_last in FORMATS.items():
        ours = {"kind": kind, "dtype": DTYPE, "channels_last": channels_last}
        if not channels_last or len(FORMATS) == 1:
            title = f"{precision}, {name}, against torchvision as shipped (float32, NCHW)"
            compared[title] = (Way(kind), Way(**ours, accelerated=True))
        if (DTYPE, channels_last) != (torch.float32, False):
            title = f"{precision}, {name}, against torchvision, same precision and memory format"
            compared[title] = (Way(**ours), Way(**ours, accelerated=True))
    return compared


def make_batch(device: str, size: tuple[int, int]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """Random images with boxes; pixels are 8-bit values scaled to [0, 1]."""
    images = [torch.randint(256, (3, *size)).to(device) / 255 for _ in range(IMAGES)]
    targets = [
        {"boxes": random_boxes(BOXES, 16, 400), "labels": torch.randint(1, CLASSES, (BOXES,))}
        for _ in range(IMAGES)
    ]
    return images, [{name: value.to(device) for name, value in target.items()} for target in targets]


def convolutions(kind: str, training: bool, channels_last: bool) -> Callable[..., None]:
    """A row that only runs the model's convolutions: forward and, in training, backward."""
    calls: list[tuple[nn.Conv2d, Tensor]] = []

    def run(images: Sequence[Tensor], *_) -> None:
        if not calls:
            calls.extend(_calls_of(kind, images, channels_last))
        dtype = DTYPE if torch.float32 != DTYPE else None
        autocast = torch.autocast(images[0].device.type, dtype, enabled=dtype is not None)
        with torch.set_grad_enabled(training), autocast:
            for conv, x in calls:
                out = conv(x)
                wanted = [t for t in (x, *conv.parameters()) if t.requires_grad]
                if training and wanted:
                    torch.autograd.grad(out, wanted, out.detach())

    return run


def _calls_of(kind: str, images: Sequence[Tensor], channels_last: bool) -> list[tuple[nn.Conv2d, Tensor]]:
    """Every convolution in a pass over ``images``, with an input of the same shape."""
    model = build(kind, images[0].device, channels_last).eval()
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
