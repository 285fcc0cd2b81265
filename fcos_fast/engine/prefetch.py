"""Copies batches to the device before they are needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from fcos_fast.assignment import GroundTruth
from fcos_fast.models import ImageBatch

Batch = tuple[ImageBatch, GroundTruth]


def prefetch(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Copy each batch to ``device``; on CUDA in a separate stream, while the previous step still runs.

    The host only queues a step, so it asks for the next batch long before the device has finished. On the CPU nothing
    is copied.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    for batch in batches:
        images, targets = batch
        with torch.cuda.stream(stream):  # None does nothing
            copies = images.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        if stream is not None:
            user = torch.cuda.current_stream(device)
            user.wait_stream(stream)
            for part in copies:
                for tensor in part.tensors():
                    # The memory belongs to the copying stream, which must not reuse it before the step is done.
                    tensor.record_stream(user)
        yield copies
