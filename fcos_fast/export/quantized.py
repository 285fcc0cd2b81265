"""From a checkpoint to a detector in int8, kept if its average precision is close to that in float32."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fcos_fast.data import DetectionDataset
from fcos_fast.engine.evaluate import evaluate_engine
from fcos_fast.engine.files import replacing
from fcos_fast.errors import ExportError
from fcos_fast.export.check import check_export
from fcos_fast.export.int8 import quantize
from fcos_fast.export.onnx_file import onnx_model
from fcos_fast.export.run import check_output, read_checkpoint, read_images
from fcos_fast.inference import Engine
from fcos_fast.inference.openvino import OpenVinoEngine
from fcos_fast.inference.torch_engine import TorchEngine
from fcos_fast.models.optional import import_optional


def export_int8(
    checkpoint: str | Path,
    output: str | Path | None,
    images: Sequence[str | Path],
    dataset: DetectionDataset,
    max_ap_drop: float = 0.5,
    **overrides: Any,
) -> Path:
    """Write the detector of a checkpoint for OpenVINO, with the network in int8.

    The float32 detector is checked as by :func:`fcos_fast.export.export`, then quantized by NNCF. The int8 detector is
    kept if its average precision is high enough.

    Args:
        checkpoint: as for ``fcos_fast.load``.
        output: ``.xml`` file to write, with a ``.bin`` file beside it; by default the checkpoint's name with
            ``_int8.xml`` at its end.
        images: image files from which the ranges of the activations are measured, such as the training images; at most
            300 are used.
        dataset: labeled images on which average precision is compared.
        max_ap_drop: by how many points (hundredths) average precision may be lower than in float32.
        **overrides: fields of the configuration, as for :func:`fcos_fast.export.export`.

    Returns:
        ``output``.

    Raises:
        ExportError: average precision drops by more; no file was written.
        ValueError, ModuleNotFoundError, FileNotFoundError, DataError, WriteError: as for
            :func:`fcos_fast.export.export`; also without images.
    """
    if not images:
        raise ValueError(
            "int8 needs images like those that the detector will see, to measure its activations"
        )
    output = output or Path(checkpoint).with_name(f"{Path(checkpoint).stem}_int8.xml")
    output = check_output(checkpoint, output, "openvino")
    import_optional("nncf", "int8 needs", "openvino")
    model, categories = read_checkpoint(checkpoint, overrides)
    with (
        tempfile.TemporaryDirectory() as folder,
        replacing(output) as temporary,
        replacing(output.with_suffix(".bin")) as weights,
    ):
        source, target = Path(folder) / "model.onnx", Path(folder) / "model.xml"
        source.write_bytes(onnx_model(model, categories).SerializeToString())
        original = OpenVinoEngine(source)
        check_export(TorchEngine(model, categories), original, read_images(images))
        quantize(source, target, images)
        _compare(original, OpenVinoEngine(target), dataset, max_ap_drop)
        temporary.write_bytes(target.read_bytes())
        weights.write_bytes(target.with_suffix(".bin").read_bytes())
    print(f"{output}: the network is in int8", flush=True)
    return output


def _compare(original: Engine, quantized: Engine, dataset: DetectionDataset, max_ap_drop: float) -> None:
    before, after = (100 * evaluate_engine(engine, dataset)[0].ap for engine in (original, quantized))
    print(f"AP on {len(dataset)} images: {before:.2f} in float32, {after:.2f} in int8", flush=True)
    if not before - after <= max_ap_drop:  # also if there is none
        raise ExportError(
            f"int8 lowers AP from {before:.2f} to {after:.2f}, by more than {max_ap_drop} points; no file was written. "
            "Give more images like those that the detector will see, or allow more with --max_ap_drop"
        )
