"""What the accelerated torchvision detectors have in common: the way from images and targets through the network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from fcos_fast.assignment import GroundTruth
from fcos_fast.integrations.cuda_graphs import Network, Sizes, run_graphed
from fcos_fast.integrations.layers import Replaced
from fcos_fast.integrations.subclasses import overridden
from fcos_fast.models.checks import values_are_checked


@dataclass
class Acceleration:
    """What :func:`fcos_fast.accelerate` did to a model, and needs in order to undo it.

    Attributes:
        replaced: layers and the classes that they had.
        channels_last: memory format of the images, which all activations take.
        dtype: of autocast around the network; None leaves it as the caller has it.
        compiled: modules that run compiled.
        parts: what was checked, by its name in the model.
        cuda_graphs: whether the network is replayed from CUDA graphs.
    """

    replaced: Replaced = field(default_factory=list)
    channels_last: bool = False
    dtype: torch.dtype | None = None
    compiled: list[nn.Module] = field(default_factory=list)
    parts: dict[str, Any] = field(default_factory=dict)
    cuda_graphs: bool = False

    def autocast(self, device: torch.device) -> AbstractContextManager:
        """What the network runs under."""
        if self.dtype is None:
            return nullcontext()
        enabled = self.dtype != torch.float32
        return torch.autocast(device.type, self.dtype if enabled else None, enabled=enabled)


class AcceleratedDetector:
    """The forward pass of torchvision's one-stage detectors, before what a detector replaces of its own.

    A base beside ``torchvision.models.detection.FCOS`` or ``RetinaNet``, whose ``transform``, ``backbone`` and
    ``head`` it uses; their calling convention, messages' exception types and state dict are unchanged.
    """

    acceleration: Acceleration

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training, detections in evaluation, as the model's own class gives them."""
        self._check_replaced()
        if self.training:
            _check_targets(targets)
        original_sizes = [tuple(image.shape[-2:]) for image in images]
        batch, targets = self.transform(images, targets)
        for i, target in enumerate(targets or ()):
            _check_boxes(i, target["boxes"])

        sizes, outputs = self._network(batch.tensors)
        if self.training:
            return self._losses(batch, sizes, outputs, targets)
        detections = self._detections(batch, sizes, outputs)
        return self.transform.postprocess(detections, batch.image_sizes, original_sizes)

    def _network(self, images: Tensor) -> tuple[Sizes, Any]:
        """Padded images (B, 3, H, W) to the sizes of the feature maps and what the head makes of them."""
        if self.acceleration.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with self.acceleration.autocast(images.device):
            if self.acceleration.cuda_graphs and images.is_cuda:
                return run_graphed(self, images)
            network = Network(self)
            outputs = network(images)
            return network.sizes, outputs

    def _check_replaced(self) -> None:
        if getattr(self, "_is_replica", False):  # of nn.DataParallel, whose parts are replicas too
            return
        for name, part in self.acceleration.parts.items():
            present = attrgetter(name)(self)
            if present is not part:
                raise RuntimeError(
                    f"model.{name} was replaced by a {type(present).__name__} after fcos_fast.accelerate, which checks "
                    "and changes the parts of a model; call accelerate again, with its options"
                )

    def __prepare_scriptable__(self) -> NoReturn:
        raise TypeError(
            "torch.jit.script does not support an accelerated model: its operators and options are Python; call "
            "fcos_fast.restore(model), script the model that torchvision made, and accelerate it again afterwards"
        )

    @staticmethod
    def _ground_truth(targets: list[dict[str, Tensor]]) -> GroundTruth:
        """Packed; labels may be a column (N, 1)."""
        boxes = [target["boxes"] for target in targets]
        labels = [
            label.flatten() if label.shape == (len(box), 1) else label
            for box, label in zip(boxes, (target["labels"] for target in targets), strict=True)
        ]
        return GroundTruth.pack(boxes, labels)

    def _anchors(
        self, batch: ImageList, sizes: Sizes, generator: Callable[..., list[Tensor]] | None = None
    ) -> Tensor:
        """(A, 4) of every image, in the precision of the images: bfloat16 of autocast would move them by pixels."""
        generator = self.anchor_generator if generator is None else generator
        like = batch.tensors.new_zeros(())  # the generator reads no more than shape, dtype and device
        return generator(batch, [like.expand(1, 1, *size) for size in sizes])[0]

    def _losses(
        self, batch: ImageList, sizes: Sizes, outputs: Any, targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        raise NotImplementedError

    def _detections(self, batch: ImageList, sizes: Sizes, outputs: Any) -> list[dict[str, Tensor]]:
        raise NotImplementedError


def check_parts(model: nn.Module, expected: dict[str, type]) -> None:
    """Raise a TypeError where a part of ``model`` does not work as the torchvision class that is expected.

    ``model`` itself goes by the name "". A subclass is as good as its class if it overrides none of its methods.
    """
    for name, kind in expected.items():
        part = attrgetter(name)(model) if name else model
        called = f"model.{name}" if name else "model"
        if not isinstance(part, kind):
            raise TypeError(
                f"accelerate: {called} is {type(part).__name__}; expected torchvision's {kind.__name__}, whose working "
                "is known"
            )
        changed = overridden(type(part), kind)
        if changed:
            raise TypeError(
                f"accelerate: {called} is {type(part).__name__}, a subclass that overrides {', '.join(changed)} of "
                f"torchvision's {kind.__name__}; accelerate would ignore that. Expected a subclass without it"
            )
        own = [attribute for attribute in vars(part) if callable(getattr(kind, attribute, None))]
        if own:
            raise TypeError(
                f"accelerate: {called}.{own[0]} is overridden on this instance and would be ignored; remove the "
                "override"
            )


def check_names(model: nn.Module, accelerated: type[AcceleratedDetector]) -> None:
    """Raise a TypeError where a subclass or an instance has attributes of the names that ``accelerated`` adds."""
    kinds = [kind for kind in accelerated.__mro__ if kind.__module__.startswith("fcos_fast.")]
    ours = {"acceleration"}.union(*map(vars, kinds)) - set(dir(nn.Module))
    taken = sorted(name for name in ours if not name.startswith("__") and hasattr(model, name))
    if taken:
        raise TypeError(
            f"accelerate: this {type(model).__name__} has {', '.join(taken)} of its own, which the accelerated class "
            "needs for itself; rename them"
        )


def _check_targets(targets: Sequence[dict[str, Tensor]] | None) -> None:
    """Torchvision raises AssertionError for these, which callers may rely on."""
    if targets is None:
        raise AssertionError("targets: got None; in training the model needs one dict per image")
    for i, target in enumerate(targets):
        boxes = target["boxes"]
        if not isinstance(boxes, Tensor):
            raise AssertionError(
                f"targets[{i}]['boxes']: got {type(boxes).__name__}; expected a tensor (N, 4)"
            )
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise AssertionError(f"targets[{i}]['boxes']: got shape {tuple(boxes.shape)}; expected (N, 4)")


def _check_boxes(i: int, boxes: Tensor) -> None:
    if not values_are_checked(boxes):
        return
    wrong = ~(boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    if wrong.any():
        box = boxes[int(wrong.nonzero()[0])].tolist()
        raise AssertionError(f"targets[{i}]['boxes']: got {box}; expected x1 < x2 and y1 < y2")
