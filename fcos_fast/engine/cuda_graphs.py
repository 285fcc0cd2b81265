"""Training steps replayed as CUDA graphs: the host launches one graph instead of thousands of kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from fcos_fast.assignment import GroundTruth
from fcos_fast.cuda_graphs import WARM_UP, GraphCache, capture
from fcos_fast.engine.distributed import world_size
from fcos_fast.models import ImageBatch

MAX_GRAPHS = 16
"""Buckets that get a graph, each with a copy of its inputs. The steps of other buckets run without one."""

Step = Callable[[ImageBatch, GroundTruth], None]


def why_not(device: torch.device) -> str | None:
    """Why steps on ``device`` cannot be captured, or None."""
    if device.type != "cuda":
        return f"the device is {device.type}, they need cuda"
    if world_size() > 1:
        return "several processes train, and their gradient exchange is not captured"
    return None


class GraphedStep:
    """Runs ``step`` as a CUDA graph per bucket: size of the batch, whether it is padded, capacity of its boxes.

    The first steps of a bucket run without a graph and warm it up. Everything runs on one stream of its own, because a
    capture needs one, and the caller's stream waits for it. All graphs share one pool for their temporary memory, since
    they never run at the same time; what lasts from step to step (parameters, optimizer, average, statistics, tally,
    inputs) is outside the pool.

    Args:
        step: reads its arguments and changes memory on the device; it returns nothing.
        device: a GPU.
    """

    def __init__(self, step: Step, device: torch.device) -> None:
        self.step = step
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self._steps: Counter[Hashable] = Counter()  # by bucket
        self._graphs: GraphCache[Callable[..., None]] = GraphCache(MAX_GRAPHS)
        self._is_told = False

    def __call__(self, images: ImageBatch, targets: GroundTruth) -> None:
        """Run the step."""
        caller = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(caller)
        with torch.cuda.stream(self.stream):
            self._run(images, targets)
        caller.wait_stream(self.stream)

    def _run(self, images: ImageBatch, targets: GroundTruth) -> None:
        replay = self._find_graph(images, targets)
        if replay is None:
            self.step(images, targets)
        else:
            replay(*images.tensors(), *targets.tensors())

    def _find_graph(self, images: ImageBatch, targets: GroundTruth) -> Callable[..., None] | None:
        bucket = (images.tensor.shape, images.tensor.dtype, images.is_padded, targets.boxes.shape)
        self._steps[bucket] += 1
        if self._steps[bucket] <= WARM_UP:
            return None
        try:
            replay = self._graphs.find(bucket, lambda: self._capture(images, targets))
        except RuntimeError as error:
            self._graphs.stop()
            self._tell(f"steps of new sizes run without graphs: {str(error).splitlines()[0]}")
            return None
        if replay is None:
            self._tell(
                f"{MAX_GRAPHS} sizes have graphs; steps of others run without. A larger model.size_divisor gives fewer "
                "sizes"
            )
        return replay

    def _capture(self, images: ImageBatch, targets: GroundTruth) -> Callable[..., None]:
        def step(image: Tensor, extents: Tensor, *packed: Tensor) -> None:
            self.step(ImageBatch(image, images.sizes, extents), GroundTruth(*packed))

        return capture(step, (*images.tensors(), *targets.tensors()), self.stream, self.pool)

    def _tell(self, message: str) -> None:
        """Print a message, once."""
        if not self._is_told:
            print(f"train.cuda_graphs: {message}", flush=True)
        self._is_told = True
