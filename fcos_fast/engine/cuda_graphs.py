"""A training step recorded once and replayed: the host launches one graph where it launched thousands of kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from fcos_fast.assignment import GroundTruth
from fcos_fast.models import ImageBatch

WARM_UP = 3
"""Steps of a bucket that run without a graph first, so that libraries choose and allocate outside of the capture."""

MOST_GRAPHS = 16
"""Buckets that get a graph; each keeps a copy of its inputs. The steps of others run without one."""

Step = Callable[[ImageBatch, GroundTruth], None]


def why_not(device: torch.device) -> str | None:
    """Why steps on ``device`` cannot be captured, or None."""
    if device.type != "cuda":
        return f"the device is {device.type}, they need cuda"
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        return "several processes train, whose exchange of gradients is not captured"
    return None


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    images: ImageBatch
    targets: GroundTruth


class GraphedStep:
    """Calls ``step`` as a CUDA graph per bucket: size of the batch, whether it is padded, capacity of its boxes.

    The first steps of a bucket are ordinary ones and warm it up. Everything runs on one stream of its own, as capture
    demands, between what the caller's stream does before and after. What a graph needs only while it runs lies in a
    pool that all of them share, since none runs beside another; everything that lasts from step to step (parameters,
    optimizer, average, statistics, tally, inputs) lies outside.

    Args:
        step: reads its arguments and what is on the device, and changes what is on the device; it returns nothing.
        device: a GPU.
    """

    def __init__(self, step: Step, device: torch.device) -> None:
        self.step = step
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self.steps: dict[tuple, int] = {}  # by bucket
        self.graphs: dict[tuple, _Captured] = {}
        self.most_graphs = MOST_GRAPHS

    def __call__(self, images: ImageBatch, targets: GroundTruth) -> None:
        """Do the step."""
        caller = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(caller)
        with torch.cuda.stream(self.stream):
            self._run(images, targets)
        caller.wait_stream(self.stream)

    def _run(self, images: ImageBatch, targets: GroundTruth) -> None:
        bucket = (images.tensor.shape, images.tensor.dtype, images.is_padded, targets.boxes.shape)
        captured = self.graphs.get(bucket)
        if captured is None and self._is_due(bucket):
            captured = self._capture(bucket, images, targets)
        if captured is None:
            self.step(images, targets)
            return
        for static, new in zip(
            (*captured.images.tensors, *captured.targets.tensors),
            (*images.tensors, *targets.tensors),
            strict=True,
        ):
            static.copy_(new)
        captured.graph.replay()

    def _is_due(self, bucket: tuple) -> bool:
        """Count a step of a bucket without a graph: shall it get one now?"""
        self.steps[bucket] = self.steps.get(bucket, 0) + 1
        return self.steps[bucket] > WARM_UP and len(self.graphs) < self.most_graphs

    def _capture(self, bucket: tuple, images: ImageBatch, targets: GroundTruth) -> _Captured | None:
        captured = _Captured(torch.cuda.CUDAGraph(), images.map(torch.clone), targets.map(torch.clone))
        try:
            # thread_local: the loader's thread that pins memory goes on meanwhile
            with torch.cuda.graph(captured.graph, self.pool, self.stream, capture_error_mode="thread_local"):
                self.step(captured.images, captured.targets)
        except RuntimeError as error:
            self.most_graphs = len(self.graphs)  # no further attempt
            reason = str(error).partition("\n")[0]
            print(f"train.cuda_graphs: steps of new sizes run without graphs: {reason}", flush=True)
            return None
        self.graphs[bucket] = captured
        if len(self.graphs) == self.most_graphs:
            print(
                f"train.cuda_graphs: {self.most_graphs} sizes have graphs; steps of others run without, "
                "a greater model.size_divisor makes fewer sizes",
                flush=True,
            )
        return captured
