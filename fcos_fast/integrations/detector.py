"""What the accelerated torchvision detectors share: checks, transform and network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList

from fcos_fast.assignment import GroundTruth
from fcos_fast.boxes import has_area
from fcos_fast.integrations.cuda_graphs import Network, Sizes, run_graphed
from fcos_fast.integrations.layers import Replaced
from fcos_fast.integrations.subclasses import overridden
from fcos_fast.models.checks import values_are_checked


@dataclass
class Acceleration:
    """What :func:`fcos_fast.accelerate` did to a model, also to undo it.

    Attributes:
        replaced: layers and their previous classes.
        channels_last: whether images, and so all activations, are channels-last.
        dtype: dtype of autocast around the network; None: the caller's autocast.
        compiled: compiled modules.
        parts: name in the model to the checked module or object.
        cuda_graphs: whether the network is replayed from CUDA graphs.
    """

    replaced: Replaced = field(default_factory=list)
    channels_last: bool = False
    dtype: torch.dtype | None = None
    compiled: list[nn.Module] = field(default_factory=list)
    parts: dict[str, Any] = field(default_factory=dict)
    cuda_graphs: bool = False

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The autocast context of the network."""
        if self.dtype is None:
            return nullcontext()
        enabled = self.dtype != torch.float32
        return torch.autocast(device.type, self.dtype if enabled else None, enabled=enabled)


class AcceleratedDetector(nn.Module):
    """The forward pass that the accelerated one-stage detectors share.

    A base class next to ``torchvision.models.detection.FCOS`` or ``RetinaNet``, whose ``transform``, ``backbone`` and
    ``head`` it uses. Calling convention, exception types and state dict are unchanged.
    """

    acceleration: Acceleration
    # of torchvision, which is not annotated
    transform: Any
    head: Any
    anchor_generator: Any
    box_coder: Any
    score_thresh: float
    nms_thresh: float
    topk_candidates: int
    detections_per_img: int

    def forward(
        self, images: Sequence[Tensor], targets: Sequence[dict[str, Tensor]] | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Losses in training mode, detections in evaluation mode, as torchvision returns them."""
        self._check_replaced()
        if self.training:
            targets = _check_targets(targets)
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
        """Padded images (B, 3, H, W) to the sizes of the feature maps and the outputs of the head."""
        if self.acceleration.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with self.acceleration.autocast(images.device):
            if self.acceleration.cuda_graphs and images.is_cuda:
                return run_graphed(self, images)
            network = Network(self)
            outputs = network(images)
            return network.sizes, outputs

    def _check_replaced(self) -> None:
        if getattr(self, "_is_replica", False):  # of nn.DataParallel; its parts are replicas too
            return
        for name, part in self.acceleration.parts.items():
            present = attrgetter(name)(self)
            if present is not part:
                raise RuntimeError(
                    f"model.{name} was replaced by a {type(present).__name__} after fcos_fast.accelerate, which checks "
                    "and changes the parts of a model; call accelerate again with the same options"
                )

    def __prepare_scriptable__(self) -> NoReturn:
        raise TypeError(
            "torch.jit.script does not support accelerated models, whose operators and options are Python; call "
            "fcos_fast.restore(model), script it, and accelerate it again"
        )

    @staticmethod
    def _ground_truth(targets: list[dict[str, Tensor]]) -> GroundTruth:
        """Pack the targets; labels may be a column (N, 1)."""
        boxes = [target["boxes"] for target in targets]
        labels = [
            label.flatten() if label.shape == (len(box), 1) else label
            for box, label in zip(boxes, (target["labels"] for target in targets), strict=True)
        ]
        return GroundTruth.pack(boxes, labels)

    def _anchors(
        self, batch: ImageList, sizes: Sizes, generator: Callable[..., list[Tensor]] | None = None
    ) -> Tensor:
        """(A, 4) of every image, in the dtype of the images: in bfloat16, anchors would move by pixels."""
        generator = self.anchor_generator if generator is None else generator
        like = batch.tensors.new_zeros(())  # the generator reads only shape, dtype and device
        return generator(batch, [like.expand(1, 1, *size) for size in sizes])[0]

    def _losses(self, batch: ImageList, sizes: Sizes, outputs: Any, targets: Any) -> dict[str, Tensor]:
        raise NotImplementedError

    def _detections(self, batch: ImageList, sizes: Sizes, outputs: Any) -> list[dict[str, Tensor]]:
        raise NotImplementedError


def check_parts(model: nn.Module, expected: Mapping[str, type]) -> None:
    """Raise a TypeError if a part of ``model`` can behave differently from the expected torchvision class.

    The name "" is ``model`` itself. A subclass is accepted if it overrides no method except ``__init__``.
    """
    for name, kind in expected.items():
        part = attrgetter(name)(model) if name else model
        called = f"model.{name}" if name else "model"
        if not isinstance(part, kind):
            raise TypeError(
                f"accelerate: {called} is {type(part).__name__}; expected torchvision's {kind.__name__}"
            )
        changed = overridden(type(part), kind)
        if changed:
            raise TypeError(
                f"accelerate: {called} is {type(part).__name__}, a subclass that overrides {', '.join(changed)} of "
                f"torchvision's {kind.__name__}, which accelerate would ignore; expected a subclass without overrides"
            )
        own = [attribute for attribute in vars(part) if callable(getattr(kind, attribute, None))]
        if own:
            raise TypeError(
                f"accelerate: {called}.{own[0]} is overridden on this instance and would be ignored; remove the "
                "override"
            )


def check_names(model: nn.Module, accelerated: type) -> None:
    """Raise a TypeError if ``model`` has attributes with names that ``accelerated`` adds."""
    kinds = [kind for kind in accelerated.__mro__ if kind.__module__.startswith("fcos_fast.")]
    ours = {"acceleration"}.union(*map(vars, kinds)) - set(dir(nn.Module))
    taken = sorted(name for name in ours if not name.startswith("__") and hasattr(model, name))
    if taken:
        raise TypeError(
            f"accelerate: this {type(model).__name__} defines {', '.join(taken)}, which the accelerated class also "
            "defines; rename them"
        )


def _check_targets(targets: Sequence[dict[str, Tensor]] | None) -> Sequence[dict[str, Tensor]]:
    """``targets``; AssertionErrors if they are invalid, as torchvision raises."""
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
    return targets


def _check_boxes(i: int, boxes: Tensor) -> None:
    if not values_are_checked(boxes):
        return
    wrong = ~has_area(boxes)
    if wrong.any():
        box = boxes[int(wrong.nonzero()[0])].tolist()
        raise AssertionError(f"targets[{i}]['boxes']: got {box}; expected x1 < x2 and y1 < y2")
