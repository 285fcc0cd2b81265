"""From a checkpoint to a file for another runtime, checked before it is kept."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fcos_fast.data import Categories, SyntheticConfig
from fcos_fast.data.images import read_pixels
from fcos_fast.data.synthetic import synthetic_image
from fcos_fast.engine.checkpoint import load_checkpoint, model_from_checkpoint
from fcos_fast.engine.files import replacing
from fcos_fast.export.check import check_export
from fcos_fast.export.onnx_file import onnx_model
from fcos_fast.export.openvino_file import convert
from fcos_fast.export.torch_file import save_compiled, save_program
from fcos_fast.inference.exported import ExportedEngine
from fcos_fast.inference.onnx import OnnxEngine
from fcos_fast.inference.openvino import OpenVinoEngine
from fcos_fast.inference.program import ProgramEngine
from fcos_fast.inference.torch_engine import TorchEngine
from fcos_fast.models import Detector
from fcos_fast.models.optional import import_optional
from fcos_fast.serialize import check_field_names
from fcos_fast.suggest import unknown_name

MAX_CHECKED = 8
"""Images on which the export is checked."""

GENERATED = ((480, 640), (640, 480), (333, 500), (480, 640))
"""(height, width) of the images that are generated for the check if none are given."""


Writing = Callable[[Detector, Categories, Path], AbstractContextManager[ExportedEngine]]


@dataclass(frozen=True)
class Format:
    """A file format.

    Attributes:
        suffix: of its files.
        extra: the extra that installs ``packages``.
        packages: what writing and checking needs beyond torch.
        writing: writes a detector with its classes; the context is the engine of the file, which is kept if the block
            succeeds.
    """

    suffix: str
    extra: str
    packages: tuple[str, ...]
    writing: Writing


@contextmanager
def _writing_onnx(model: Detector, categories: Categories, output: Path) -> Iterator[ExportedEngine]:
    with replacing(output) as temporary:
        temporary.write_bytes(onnx_model(model, categories).SerializeToString())
        yield OnnxEngine(temporary)


@contextmanager
def _writing_openvino(model: Detector, categories: Categories, output: Path) -> Iterator[ExportedEngine]:
    with replacing(output) as temporary, replacing(output.with_suffix(".bin")) as weights:
        written = temporary.with_suffix(".bin")  # OpenVINO chooses the name
        try:
            with tempfile.TemporaryDirectory() as folder:
                source = Path(folder) / "model.onnx"
                source.write_bytes(onnx_model(model, categories).SerializeToString())
                convert(source, temporary)
            yield OpenVinoEngine(temporary)
            written.replace(weights)
        finally:
            written.unlink(missing_ok=True)


def _writing_program(save: Callable[[Detector, Categories, Path], None]) -> Writing:
    @contextmanager
    def writing(model: Detector, categories: Categories, output: Path) -> Iterator[ExportedEngine]:
        with replacing(output) as temporary:
            save(model, categories, temporary)
            yield ProgramEngine(temporary)

    return writing


FORMATS = {
    "onnx": Format(".onnx", "export", ("onnx", "onnxscript", "onnxruntime"), _writing_onnx),
    "openvino": Format(".xml", "openvino", ("onnx", "onnxscript", "openvino"), _writing_openvino),
    "torch-export": Format(".pt2", "train", (), _writing_program(save_program)),
    "aoti": Format(".pt2", "train", (), _writing_program(save_compiled)),
}
"""Name to format."""


def export(
    checkpoint: str | Path,
    output: str | Path | None = None,
    format: str = "onnx",
    images: Sequence[str | Path] = (),
    **overrides: Any,
) -> Path:
    """Write the detector of a checkpoint as a file that other runtimes read.

    The file contains the network and the post-processing with non-maximum suppression, for any batch size and image
    size, and describes itself: class names, configuration, inputs and outputs. Before it is kept, it is run on images
    and must find what the checkpoint finds there: the same labels in the same order, boxes within 1e-3 pixel (or 1e-5
    of their longer side) and scores within 1e-5.

    Args:
        checkpoint: as for ``fcos_fast.load``.
        output: file to write; by default the checkpoint with the suffix of the format.
        format: a name of :data:`FORMATS`.
        images: image files for the check, of which at most 8 are used; by default images are generated.
        **overrides: fields of the configuration that change what is detected, such as ``score_threshold``.

    Returns:
        ``output``.

    Raises:
        ValueError: unknown format or field, wrong suffix, or a model that cannot be exported.
        ExportError: the exported detector differs from the checkpoint.
        ModuleNotFoundError: a package of the extra is not installed.
        FileNotFoundError, DataError, WriteError: a file cannot be read or written.
    """
    output = check_output(checkpoint, output, format)
    pixels = read_images(images) if images else _generate()
    model, categories = read_checkpoint(checkpoint, overrides)
    output.parent.mkdir(parents=True, exist_ok=True)
    with FORMATS[format].writing(model, categories, output) as exported:
        compared = check_export(TorchEngine(model, categories), exported, pixels)
    print(f"{output}: {compared} detections on {len(pixels)} images are those of {checkpoint}", flush=True)
    if compared == 0:
        print(
            "nothing was detected, so the check says little; give images like those of the training (--images)"
        )
    return output


def check_output(checkpoint: str | Path, output: str | Path | None, format: str) -> Path:
    """The file to write, if the format is known, fits its suffix, and its packages are installed."""
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    chosen = FORMATS[format]
    output = Path(checkpoint).with_suffix(chosen.suffix) if output is None else Path(output)
    if output.suffix != chosen.suffix:
        raise ValueError(f"{output}: a file of the format {format} has the suffix {chosen.suffix}")
    for package in chosen.packages:
        import_optional(package, f"the format {format} needs", chosen.extra)
    return output


def read_checkpoint(checkpoint: str | Path, overrides: dict[str, Any]) -> tuple[Detector, Categories]:
    """The model of a checkpoint with other values in its configuration, and its classes."""
    model, categories = model_from_checkpoint(load_checkpoint(checkpoint))
    check_field_names(type(model.config), overrides)
    model.config = replace(model.config, **overrides)
    return model, categories


def read_images(files: Sequence[str | Path]) -> dict[str, np.ndarray]:
    """Some of the images, evenly spaced, by name."""
    step = -(-len(files) // MAX_CHECKED)
    return {str(file): read_pixels(file) for file in files[::step]}


def _generate() -> dict[str, np.ndarray]:
    images = {}
    for i, size in enumerate(GENERATED):
        image = synthetic_image(0, i, SyntheticConfig(size)).image
        assert isinstance(image, np.ndarray)  # not a file
        images[f"generated image {i}"] = image.transpose(1, 2, 0)
    return images
