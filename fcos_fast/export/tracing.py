"""A detector as a program of ``torch.export``, from which every format is written."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout

import torch
import torch.fx.experimental._config as symbolic
from torch import Tensor
from torch.export import Dim

from fcos_fast._extension import cpu_error
from fcos_fast.export.graph import DetectionGraph
from fcos_fast.models import Detector

DYNAMIC = {"images": {0: "batch", 2: "height", 3: "width"}, "sizes": {0: "batch"}}
"""Input -> its dynamic axes with their names."""


def trace(model: Detector) -> torch.export.ExportedProgram:
    """:class:`DetectionGraph` of a model on the CPU, with dynamic batch size, height and width.

    Raises:
        ValueError: the model has a layer that cannot be traced.
    """
    if cpu_error is not None:
        raise cpu_error
    graph = DetectionGraph(model).cpu().float()
    dims = {name: Dim(name, max=2**16) for name in ("batch", "height", "width")}
    shapes = {name: {i: dims[axis] for i, axis in axes.items()} for name, axes in DYNAMIC.items()}
    # Otherwise torch decides by the example that no side is 1; the highest level of a small image has such a side.
    size_oblivious = symbolic.patch(backed_size_oblivious=True)  # type: ignore[attr-defined]
    with torch.no_grad(), quiet(), size_oblivious:
        program = torch.export.export(graph, _example(model.config.strides[-1]), dynamic_shapes=shapes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine
    return program


def _example(stride: int) -> tuple[Tensor, Tensor]:
    """Inputs for which no level has a single row or column."""
    side = 2 * stride + 2
    return torch.zeros(2, 3, side, side + 32), torch.tensor([[side, side + 32], [side - 1, side]])


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporter's progress and its warnings, which are about its own code."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
