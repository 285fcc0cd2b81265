"""Post-training quantization of an exported detector by NNCF: the network in int8, the post-processing in float32.

``python -m fcos_fast.export.int8 model.onnx model.xml < images.json`` is the process of :func:`quantize`, of its own
because OpenVINO's converter can crash in one that has run PyTorch's exporter.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fcos_fast.errors import ExportError

MAX_CALIBRATION = 300
"""Images from which the ranges of the activations are measured."""


def quantize(source: Path, target: Path, images: Sequence[str | Path]) -> None:
    """Quantize in another process.

    Args:
        source: ONNX file of this package.
        target: ``.xml`` file to write, with a ``.bin`` file beside it.
        images: image files like those that the detector will see, of which at most 300 are used.

    Raises:
        ExportError: NNCF or OpenVINO failed; the message is its own.
    """
    step = -(-len(images) // MAX_CALIBRATION)
    chosen = json.dumps([str(image) for image in images[::step]])
    command = [sys.executable, "-m", __name__, str(source), str(target)]
    done = subprocess.run(command, input=chosen, capture_output=True, text=True)
    if done.returncode:
        raise ExportError(f"the model cannot be quantized: {done.stderr.strip()}")


def main(source: str, target: str) -> None:
    """The process of :func:`quantize`; names of images come from the standard input."""
    import nncf
    import openvino

    nncf.set_log_level(logging.ERROR)
    images = json.load(sys.stdin)
    model = openvino.Core().read_model(source)
    dataset = nncf.Dataset(list(_inputs(source, images)))
    scope = nncf.IgnoredScope(names=outside_network(model))
    quantized = nncf.quantize(model, dataset, subset_size=len(images), ignored_scope=scope)
    openvino.save_model(quantized, target, compress_to_fp16=False)


def _inputs(source: str, images: Sequence[str]) -> Iterator[dict[str, np.ndarray]]:
    from fcos_fast.data.images import read_pixels
    from fcos_fast.inference.exported import INPUTS
    from fcos_fast.inference.openvino import OpenVinoEngine
    from fcos_fast.inference.preprocess import batch
    from fcos_fast.models.sizes import detection_size

    config = OpenVinoEngine(source).config
    for image in images:
        pixels = read_pixels(image)
        size = detection_size(pixels.shape[:2], config)
        tensor = batch([pixels], [size], config.size_divisor)
        yield dict(zip(INPUTS, (tensor, np.array([size])), strict=True))


NO_WORK = ("Constant", "Parameter", "Result")


def outside_network(model: Any) -> list[str]:
    """Names of the operations of an OpenVINO model that are not between two of its convolutions.

    These normalize images, or turn the outputs of the last convolutions into boxes, whose coordinates need more than 8
    bits.
    """
    operations = model.get_ordered_ops()
    after: set[str] = set()  # operations that depend on a convolution
    for operation in operations:
        inputs = [source.get_node().get_friendly_name() for source in operation.input_values()]
        if _is_convolution(operation) or any(name in after for name in inputs):
            after.add(operation.get_friendly_name())
    before: set[str] = set()  # operations on which a convolution depends
    for operation in reversed(operations):
        targets = [
            port.get_node().get_friendly_name()
            for output in operation.outputs()
            for port in output.get_target_inputs()
        ]
        if _is_convolution(operation) or any(name in before for name in targets):
            before.add(operation.get_friendly_name())
    network = after & before
    return [
        name
        for operation in operations
        if (name := operation.get_friendly_name()) not in network and operation.get_type_name() not in NO_WORK
    ]


def _is_convolution(operation: Any) -> bool:
    return operation.get_type_name() in ("Convolution", "GroupConvolution")


if __name__ == "__main__":
    main(*sys.argv[1:])
