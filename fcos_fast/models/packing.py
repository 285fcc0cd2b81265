"""What a training batch needs of the host, done where images are read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fcos_fast.assignment import GroundTruth, bucket_capacity
from fcos_fast.models.checks import check_targets, values_are_checked
from fcos_fast.models.config import DetectorConfig
from fcos_fast.models.transform import ImageBatch, Size, Transform, has_area, image_size, scale_boxes


class BatchPacker:
    """Resizes, checks and packs samples in a loader's worker, so that a step only copies and normalises.

    Images travel as uint8 where no image of a batch changes its size. Where one does, the batch travels as
    float32: the model resizes normalised pixels, and no uint8 holds the same numbers. Losses have the bits that
    ``model(images, targets)`` gives for the lists on the CPU (in a worker but for the rounding of resized pixels: torch
    interpolates otherwise where it has one thread).

    Args:
        config: of the model.
    """

    def __init__(self, config: DetectorConfig) -> None:
        self.config = config
        self.transform = Transform(config)

    def resize(self, image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """One sample at the size that the model trains it at; of several sizes torch's generator draws one."""
        small = self.transform.resize(image)
        return small, learned_target(target, image_size(image), image_size(small), self.config)

    def collate(self, samples: Sequence[tuple[Tensor, dict[str, Any]]]) -> tuple[ImageBatch, GroundTruth]:
        """Pack resized samples, without the boxes that a target's ``ignore`` (N,) bool marks.

        Raises:
            ValueError, TypeError: for a label or box that no model can learn; the message names it.
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
    """The target of an image of (height, width) ``size`` as the network learns it at ``new_size``.

    With ``inclusive_targets`` x2 and y2 become those of the last pixel inside. A box of at most one pixel has no area
    then; it is dropped, as in maskrcnn-benchmark.
    """
    boxes = target["boxes"]
    if not config.inclusive_targets:
        return {**target, "boxes": scale_boxes(boxes, size, new_size)}
    inclusive = torch.cat((boxes[:, :2], boxes[:, 2:] - 1), dim=1)
    target = {**target, "boxes": scale_boxes(inclusive, size, new_size)}
    if not values_are_checked(
        boxes
    ):  # selecting would wait for the device, where such a box is never assigned
        return target
    kept = has_area(inclusive) | ~has_area(
        boxes
    )  # a box that never had an area is the caller's error, not ours
    rows = {name: target[name][kept] for name in ("boxes", "labels", "ignore") if name in target}
    return target | rows
