"""Batches on the device before they are needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from fcos_fast.assignment import GroundTruth
from fcos_fast.models import ImageBatch

Batch = tuple[ImageBatch, GroundTruth]


def prefetch(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Copy each batch to ``device``; on CUDA on a stream of its own, while the step before it still runs.

    The host only queues a step, and so comes back for the next batch long before the device has finished it. On the
    CPU nothing is copied.
    """
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    for batch in batches:
        with torch.cuda.stream(stream):  # None does nothing
            copies = tuple(part.to(device, non_blocking=True) for part in batch)
        if stream is not None:
            user = torch.cuda.current_stream(device)
            user.wait_stream(stream)
            for part in copies:
                for tensor in part.tensors():
                    # Their memory is the copying stream's: it may take it back only when the user's work is done.
                    tensor.record_stream(user)
        yield copies
