"""The targets of a batch before its forward pass, and the equal parts in which a step can compute it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch.distributed as dist

from fcos_fast.models.transform import ImageBatch


@dataclass(frozen=True)
class AssignedTargets:
    """The targets of a batch, or of one of its equal parts. Every part divides its losses by the totals of the whole
    batch, so the losses and gradients of the parts add up to those of the batch.

    Attributes:
        targets: output of :meth:`fcos_fast.models.Detector.assign`.
        reduction: pending all-reduce of ``targets.totals``; None in a single process.
        parts: number of equal parts into which the batch was split.
    """

    targets: Any
    reduction: dist.Work | None = None
    parts: int = 1


def split(
    images: ImageBatch, assigned: AssignedTargets, parts: int
) -> list[tuple[ImageBatch, AssignedTargets]]:
    """Split a batch of B images into ``parts`` of B / parts images. The tensors are views of the batch's.

    Raises:
        ValueError: B is not a multiple of ``parts``.
    """
    if parts == 1:
        return [(images, assigned)]
    count = len(images.tensor)
    if count % parts:
        raise ValueError(f"a batch of {count} images cannot be split into {parts} equal parts")
    tensor, extents = images.tensors()
    share = count // parts
    rows = [slice(start, start + share) for start in range(0, count, share)]
    return [
        (
            ImageBatch(tensor[part], images.sizes[part], extents[part], images.is_padded),
            replace(assigned, targets=assigned.targets.part(part), parts=parts),
        )
        for part in rows
    ]
