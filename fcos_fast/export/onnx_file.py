"""A detector as an ONNX model of standard operators, non-maximum suppression included."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.export import Dim

from fcos_fast import __version__
from fcos_fast._extension import cpu_error
from fcos_fast.data.categories import Categories
from fcos_fast.export.graph import DetectionGraph
from fcos_fast.inference.exported import INPUTS, OUTPUTS, describe
from fcos_fast.models import Detector

if TYPE_CHECKING:
    import onnx


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
    # Any size is possible in ONNX. While tracing, no level may have a single row or column: torch would fix it.
    least = model.config.strides[-1] + 1
    dims = {
        "batch": Dim("batch", max=2**16),
        **{n: Dim(n, min=least, max=2**16) for n in ("height", "width")},
    }
    shapes = {name: {i: dims[axis] for i, axis in axes.items()} for name, axes in DYNAMIC.items()}
    with torch.no_grad(), _quiet():
        return torch.export.export(graph, _example(least), dynamic_shapes=shapes)


def _example(least: int) -> tuple[Tensor, Tensor]:
    side = 2 * least
    return torch.zeros(2, 3, side, side + 32), torch.tensor([[side, side + 32], [side - 1, side]])


def onnx_model(model: Detector, categories: Categories) -> onnx.ModelProto:
    """The ONNX model of a detector, with its description as metadata.

    Raises:
        ValueError: the model has a layer that cannot be exported; the message has the exporter's.
    """
    import onnx

    try:
        proto = to_onnx(trace(model), len(categories), INPUTS, OUTPUTS, DYNAMIC)
    except torch.onnx.OnnxExporterError as error:
        raise ValueError(f"{model.title} cannot be exported to ONNX: {error.__cause__ or error}") from error
    proto.producer_name, proto.producer_version = "fcos_fast", __version__
    proto.doc_string = f"{model.title}, {len(categories)} classes"
    onnx.helper.set_model_props(proto, describe(model.config, categories))
    onnx.checker.check_model(proto)
    return proto


def to_onnx(
    traced: torch.export.ExportedProgram,
    num_classes: int,
    inputs: Sequence[str],
    outputs: Sequence[str],
    axes: dict[str, dict[int, str]] | None = None,
) -> onnx.ModelProto:
    """A traced graph in standard ONNX operators; its tensors and dynamic axes get these names."""
    from fcos_fast.export.translations import OPSET, OPSET_OF_DEFORM_CONV, translations

    with _quiet():
        program: Any = torch.onnx.export(
            traced,
            dynamo=True,
            custom_translation_table=translations(num_classes),
            opset_version=OPSET,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=axes,
            external_data=False,
            verbose=False,
        )
    proto: onnx.ModelProto = program.model_proto
    if any(node.op_type == "DeformConv" for node in proto.graph.node):
        # PyTorch's exporter writes opset 18, and ONNX's converter to 19 gives up at an operator that 18 does not have.
        # All others have the same meaning in both.
        (standard,) = (entry for entry in proto.opset_import if entry.domain == "")
        standard.version = OPSET_OF_DEFORM_CONV
    _strip(proto)
    return proto


def _strip(proto: onnx.ModelProto) -> None:
    """Remove what the exporter notes about its own work, which includes stack traces with paths of this machine."""
    graph = proto.graph
    for part in (
        proto,
        graph,
        *graph.node,
        *graph.input,
        *graph.output,
        *graph.initializer,
        *graph.value_info,
    ):
        del part.metadata_props[:]
        part.ClearField("doc_string")


@contextmanager
def _quiet() -> Iterator[None]:
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
