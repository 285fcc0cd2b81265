"""Detection in one image by every engine that ``fcos_fast.load`` offers, from the array to the boxes, on a CPU.

All rows but int8 compute in float32. ``auto`` has timed the engines before. The models have random weights and many
candidates for NMS.
"""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.case import Case
from benchmarks.rows import OURS
from fcos_fast.data import Categories, SyntheticConfig
from fcos_fast.data.synthetic import synthetic_image
from fcos_fast.engine.benchmark import make_talkative
from fcos_fast.inference.engine import Engine
from fcos_fast.inference.fastest import FastestEngine
from fcos_fast.inference.runtimes import runtime_engine
from fcos_fast.inference.torch_engine import TorchEngine
from fcos_fast.models import Detector, fcos

pytest.importorskip("openvino", reason="OpenVINO is not installed; it comes with fcos_fast[openvino]")
pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed; it comes with fcos_fast[export]")

SIZES = {"resnet18": (240, 320), "resnet50": (800, 1088)}
CLASSES = Categories(tuple(f"class {i}" for i in range(80)))


def image_of(backbone: str, index: int = 0) -> np.ndarray:
    """(H, W, 3) uint8."""
    pixels = synthetic_image(0, index, SyntheticConfig(SIZES[backbone])).image
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


@functools.cache
def build(backbone: str) -> Detector:
    torch.manual_seed(0)
    height, width = SIZES[backbone]
    model = fcos(backbone, num_classes=len(CLASSES), min_size=height, max_size=width)
    return make_talkative(model, torch.from_numpy(image_of(backbone)).permute(2, 0, 1))


FOLDER = tempfile.TemporaryDirectory()  # deleted at the end of the process


@functools.cache
def exported(backbone: str) -> Path:
    from fcos_fast.export import onnx_model

    path = Path(FOLDER.name) / f"{backbone}.onnx"
    path.write_bytes(onnx_model(build(backbone), CLASSES).SerializeToString())
    return path


@functools.cache
def in_int8(backbone: str) -> Path:
    from PIL import Image

    from fcos_fast.export.int8 import quantize

    images = []
    for i in range(8):
        images.append(Path(FOLDER.name) / f"{backbone}-{i}.png")
        Image.fromarray(image_of(backbone, i)).save(images[-1])
    quantize(exported(backbone), Path(FOLDER.name) / f"{backbone}.xml", images)
    return Path(FOLDER.name) / f"{backbone}.xml"


@functools.cache
def engine(name: str, backbone: str, threads: int) -> Engine:
    if name == "int8":
        return runtime_engine("openvino", in_int8(backbone), threads)
    if name == "torch":
        return TorchEngine(build(backbone).optimize_for_inference("float32"), CLASSES)
    if name == "auto":
        candidates = {
            n: functools.partial(engine, n, backbone, threads) for n in ("torch", "onnxruntime", "openvino")
        }
        return FastestEngine(candidates, build(backbone).config, CLASSES)
    return runtime_engine(name, exported(backbone), threads)


def detect(name: str, backbone: str, threads: int):
    def run(image):
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
        found = engine(name, backbone, threads).detect([image])
        return None if name == "int8" else found

    return run


def check(result, expected, data):
    """int8 has detections of its own."""
    if result is None:
        return
    for found, peer in zip(result, expected, strict=True):
        assert len(found.scores) == len(peer.scores) == 100
        np.testing.assert_allclose(found.scores, peer.scores, rtol=1e-3)


ROWS = {
    "openvino": "openvino",
    "onnxruntime": "onnxruntime",
    OURS: "torch",
    f"{OURS}, engine='auto'": "auto",
    f"{OURS}, int8 in OpenVINO": "int8",
}
"""Name of the row to the engine."""

CASES = [
    Case(
        "detect",
        f"FCOS-{backbone}, {height}x{width}, {threads} thread{'s' * (threads > 1)}",
        functools.partial(lambda device, backbone: (image_of(backbone),), backbone=backbone),
        {row: detect(name, backbone, threads) for row, name in ROWS.items()},
        check,
        devices=("cpu",),
    )
    for backbone, (height, width) in SIZES.items()
    for threads in (1, 2)
]


def test_engines(time_row, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    time_row()
