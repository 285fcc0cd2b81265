"""A detector as an ONNX model of standard operators, non-maximum suppression included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from fcos_fast import __version__
from fcos_fast.data.categories import Categories
from fcos_fast.export.tracing import DYNAMIC, quiet, trace
from fcos_fast.inference.exported import INPUTS, OUTPUTS, describe
from fcos_fast.models import Detector

if TYPE_CHECKING:
    import onnx


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

    with quiet():
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
