"""Prepares training batches on the host, in the dataloader workers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fcos_fast.assignment import GroundTruth, bucket_capacity
from fcos_fast.boxes import has_area
from fcos_fast.models.checks import check_targets, values_are_checked
from fcos_fast.models.config import DetectorConfig
from fcos_fast.models.sizes import Size
from fcos_fast.models.transform import ImageBatch, Transform, image_size, scale_boxes


class BatchPacker:
    """Resizes, checks and packs samples in a dataloader worker; the training step only copies and normalizes.

    A batch stays uint8 if no image is resized. Otherwise it is float32, because the model resizes normalized pixels.
    Losses are bit-identical to those of ``model(images, targets)`` on the CPU, except for the rounding of pixels that
    are resized in a worker, where torch interpolates with one thread.

    Args:
        config: configuration of the model.
    """

    def __init__(self, config: DetectorConfig) -> None:
        self.config = config
        self.transform = Transform(config)

    def resize(
        self, image: Tensor, target: dict[str, Any], scale: float = 1.0
    ) -> tuple[Tensor, dict[str, Any]]:
        """Resize one sample for training to ``scale`` times the model's input size; if it has several, torch's
        generator draws one."""
        small = self.transform.resize(image, scale)
        return small, learned_target(target, image_size(image), image_size(small), self.config)

    def collate(self, samples: Sequence[tuple[Tensor, dict[str, Any]]]) -> tuple[ImageBatch, GroundTruth]:
        """Pack resized samples. Boxes marked in a target's ``ignore`` (N,) bool are dropped.

        Raises:
            ValueError, TypeError: invalid label or box; the message names it.
        """
        images, targets = zip(*samples, strict=True)
        check_targets(targets, len(images), self.config.num_classes, torch.device("cpu"))
        kept = [~target["ignore"] if "ignore" in target else slice(None) for target in targets]
        boxes = [target["boxes"][keep] for target, keep in zip(targets, kept, strict=True)]
        labels = [target["labels"][keep] for target, keep in zip(targets, kept, strict=True)]
        gt = GroundTruth.pack(boxes, labels, bucket_capacity(sum(map(len, boxes))))
        return self.transform.pack(images), gt


def learned_target(
    target: dict[str, Any], size: Size, new_size: Size, config: DetectorConfig
) -> dict[str, Any]:
    """The target of an image resized from ``size`` to ``new_size``, in the convention that the network learns.

    With ``inclusive_targets``, x2 and y2 become those of the last pixel inside. Boxes of at most one pixel have no area
    then and are dropped, as in maskrcnn-benchmark.
    """
    boxes = target["boxes"]
    if not config.inclusive_targets:
        return {**target, "boxes": scale_boxes(boxes, size, new_size)}
    inclusive = torch.cat((boxes[:, :2], boxes[:, 2:] - 1), dim=1)
    target = {**target, "boxes": scale_boxes(inclusive, size, new_size)}
    if not values_are_checked(boxes):  # selecting would wait for the device; such boxes are never assigned
        return target
    kept = has_area(inclusive) | ~has_area(boxes)  # a box that never had an area is an error, reported later
    rows = {name: target[name][kept] for name in ("boxes", "labels", "ignore") if name in target}
    return target | rows
