"""Test that an installed fcos_fast predicts from an ONNX file with nothing but NumPy, Pillow and onnxruntime.

``python tools/onnx_smoke_test.py write FOLDER`` exports a small detector in an environment with everything, and
``python -I tools/onnx_smoke_test.py read FOLDER`` runs it in the environment to test, from any folder.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

MAX_MEGABYTES = 250
"""Size of the environment without the CUDA operators, which are not used here and grow with each architecture."""


def write(folder: Path) -> None:
    """Write a model, an image, and what the model detects there."""
    import torch

    from fcos_fast.data import Categories
    from fcos_fast.engine.benchmark import make_talkative
    from fcos_fast.export import onnx_model
    from fcos_fast.inference.torch_engine import TorchEngine
    from fcos_fast.models import PRESETS, build_detector

    torch.manual_seed(0)
    pixels = np.random.default_rng(0).integers(0, 256, (90, 150, 3), np.uint8)
    small = {"fpn_channels": 32, "head_channels": 32, "head_convs": 1, "num_classes": 2, "max_detections": 20}
    config = replace(PRESETS["adelaidet-rt"], backbone="resnet18", min_size=96, max_size=192, **small)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    model, categories = make_talkative(build_detector(config), image, 200), Categories(("cell", "bubble"))
    (found,) = TorchEngine(model, categories).detect([pixels])
    (folder / "model.onnx").write_bytes(onnx_model(model, categories).SerializeToString())
    Image.fromarray(pixels).save(folder / "image.png")
    names = [categories.names[label] for label in found.labels]
    (folder / "expected.json").write_text(json.dumps({"boxes": found.boxes.tolist(), "names": names}))


def read(folder: Path) -> None:
    """Predict with the installed package, and compare."""
    import fcos_fast

    package = Path(fcos_fast.__file__).parent
    assert "site-packages" in package.parts, f"fcos_fast was imported from {package}, not from site-packages"
    found = fcos_fast.load(folder / "model.onnx").predict(str(folder / "image.png"), score_threshold=0)
    expected = json.loads((folder / "expected.json").read_text())
    assert len(found) == len(expected["names"]) == 20, f"{len(found)} detections"
    assert list(found.names) == expected["names"]
    np.testing.assert_allclose(found.boxes, expected["boxes"], atol=1e-3)
    files = [file for file in Path(sys.prefix).rglob("*") if file.is_file() and "_C_cuda" not in file.name]
    size = sum(file.stat().st_size for file in files) / 1e6
    assert size < MAX_MEGABYTES, f"the environment has {size:.0f} MB, more than {MAX_MEGABYTES}"
    print(f"{len(found)} detections from an ONNX file in an environment of {size:.0f} MB without torch")


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](Path(sys.argv[2]))
