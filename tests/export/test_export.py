"""Exported files find what their checkpoint finds, in ONNX Runtime and in OpenVINO, and describe themselves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import fcos_fast
from fcos_fast.cli.main import main
from fcos_fast.data.synthetic import CATEGORIES as SHAPES
from fcos_fast.data.synthetic import SyntheticConfig, write_voc
from fcos_fast.export import export, onnx_model
from fcos_fast.export import run as export_run
from fcos_fast.export.check import difference
from fcos_fast.inference import RawDetections
from fcos_fast.inference.onnx import OnnxEngine
from fcos_fast.inference.openvino import OpenVinoEngine
from fcos_fast.inference.torch_engine import TorchEngine
from tests.export.models import CATEGORIES, photos, save_photos, small_detector

EXPORTED = {
    "torchvision": {"fpn_upsampling": "bilinear"},  # its locations depend on the sizes of P6 and P7
    "torchvision-retinanet": {"max_level": 5},
}
"""An FCOS and a RetinaNet. An export takes ten seconds of a CPU, so the other presets are exported by `python -m
benchmarks.export_parity`; test_graph.py compares all of them before the translation, test_operators.py all rules."""


@pytest.mark.slow
@pytest.mark.parametrize("preset", EXPORTED)
def test_engines_detect_the_same(preset, tmp_path):
    model = small_detector(preset, **EXPORTED[preset])
    proto = onnx_model(model, CATEGORIES)
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    assert {node.domain for node in proto.graph.node} <= {"", "ai.onnx"}  # standard operators
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*proto.graph.input, *proto.graph.output)
    }
    most = model.config.max_detections
    assert shapes == {
        "images": ["batch", 3, "height", "width"],
        "sizes": ["batch", 2],
        "boxes": ["batch", most, 4],
        "scores": ["batch", most],
        "labels": ["batch", most],
        "counts": ["batch"],
    }

    original = TorchEngine(model, CATEGORIES)
    for engine in (OnnxEngine(tmp_path / "model.onnx", 1), OpenVinoEngine(tmp_path / "model.onnx", 1)):
        assert engine.categories == CATEGORIES
        assert engine.config == model.config
        # one alone, three with padding, and two sizes that the graph has not seen while it was traced
        for sizes in ([(150, 200)], [(96, 160), (90, 131), (96, 160)], [(200, 70), (40, 40)]):
            images = photos(*sizes)
            pairs = zip(engine.detect(images), original.detect(images), strict=True)
            for image, (found, expected) in zip(images, pairs, strict=True):
                assert len(expected.labels) >= 3
                assert difference(expected, found, most) is None
                assert [x.dtype for x in found] == [np.float32, np.float32, np.int64]
                assert found.boxes.max() <= max(image.shape)


@pytest.mark.slow
def test_deformable_convolutions(tmp_path):
    """They are newer than the other operators. Random offsets amplify rounding more than trained ones."""
    model = small_detector("mmdetection-tricks", head_dcn="v2", max_level=5)
    proto = onnx_model(model, CATEGORIES)
    assert "DeformConv" in {node.op_type for node in proto.graph.node}
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", 19)]
    (tmp_path / "model.onnx").write_bytes(proto.SerializeToString())
    image = photos((96, 128))
    (expected,) = TorchEngine(model, CATEGORIES).detect(image)
    (found,) = OnnxEngine(tmp_path / "model.onnx", 1).detect(image)
    assert len(found.scores) == len(expected.scores) > 10
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-3)


def test_the_file_describes_itself(exported, checkpoint):
    proto = onnx.load(exported)
    about = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(about["names"]) == list(SHAPES.names)
    assert json.loads(about["config"])["detector"] == "fcos"
    assert (about["version"], about["size_divisor"]) == (fcos_fast.__version__, "32")
    assert (about["score_threshold"], about["iou_threshold"], about["max_detections"]) == (
        "0.05",
        "0.6",
        "40",
    )
    assert "RGB in [0, 1]" in json.loads(about["interface"])["images"]
    assert str(Path(fcos_fast.__file__).parent).encode() not in exported.read_bytes()  # paths of this machine


def test_load_predicts_from_it_without_torch(exported, checkpoint, tmp_path):
    (image,) = save_photos(tmp_path, (110, 150))
    code = """
import json, sys
sys.modules["torch"] = sys.modules["onnx"] = None  # importing them fails
import fcos_fast
found = fcos_fast.load(sys.argv[1]).predict(sys.argv[2], score_threshold=0.1)
print(json.dumps([found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), list(found.names)]))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(exported), str(image)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    boxes, scores, labels, names = json.loads(done.stdout)
    expected = fcos_fast.load(checkpoint, "cpu", "float32").predict(str(image), score_threshold=0.1)
    assert len(labels) == 40  # as --max_detections says
    assert labels == expected.labels[:40].tolist()
    assert names == list(expected.names[:40])
    np.testing.assert_allclose(boxes, expected.boxes[:40], atol=1e-3)
    np.testing.assert_allclose(scores, expected.scores[:40], atol=1e-5)


@pytest.mark.parametrize("file", ["exported", "program"])
def test_evaluate_detect_and_benchmark_accept_it(file, checkpoint, tmp_path, request):
    exported = request.getfixturevalue(file)
    root, found = tmp_path / "data", {}
    write_voc(root, {"val": 3}, config=SyntheticConfig((96, 128), (16, 60), max_objects=3))
    for model in (exported, checkpoint):
        command = ["evaluate", "--checkpoint", str(model), "--data.root", str(root), "--data.split", "val"]
        results = tmp_path / f"{model.name}.json"
        runs = ["--runs", str(tmp_path / "runs"), "--output", str(results), "--batch_size", "2"]
        assert main([*command, *runs, "--precision", "float32", "--device", "cpu"]) == 0
        found[model.suffix] = json.loads(results.read_text())
    images = {row["image_id"] for row in found[".pt"]}
    assert len(images) == 3
    for image in images:
        mine, theirs = ([r for r in found[s] if r["image_id"] == image] for s in (exported.suffix, ".pt"))
        assert [r["category_id"] for r in mine] == [r["category_id"] for r in theirs[:40]]
        boxes, expected = ([r["bbox"] for r in rows] for rows in (mine, theirs[:40]))
        np.testing.assert_allclose(boxes, expected, atol=2e-3)

    images = str(root / "JPEGImages")
    assert main(["detect", "--checkpoint", str(exported), images, "--runs", str(tmp_path)]) == 0
    assert len(json.loads((tmp_path / "detect" / "detections.json").read_text())) == 3
    command = [
        "benchmark",
        "--checkpoint",
        str(exported),
        "--images",
        images,
        "--repeats",
        "1",
        "--warmup",
        "0",
    ]
    assert main([*command, "--threads", "1", "--output", str(tmp_path / "times.json")]) == 0
    (row,) = json.loads((tmp_path / "times.json").read_text())["rows"]
    assert (row["variant"], row["network_sees"]) == ("exported", "96x128")
    assert row["stages_p50_ms"]["network"] > 0
    assert row["detections_per_image"] > 0


def test_a_file_that_differs_is_not_written(exported, checkpoint, tmp_path, monkeypatch, capsys):
    """An exporter that moves the boxes by a hundredth of a pixel."""
    right = export_run.onnx_model
    monkeypatch.setattr(export_run, "onnx_model", lambda *_: pytest.importorskip("onnx").load(exported))
    monkeypatch.setattr(
        OnnxEngine,
        "run",
        lambda self, *inputs, run=OnnxEngine.run: [(x := run(self, *inputs))[0] + 0.01, *x[1:]],
    )
    assert right is not export_run.onnx_model
    command = ["export", "--checkpoint", str(checkpoint), "--output", str(tmp_path / "model.onnx")]
    assert main([*command, "--max_detections", "40"]) == 1
    error = capsys.readouterr().err
    assert "differs from the original on generated image 0" in error
    assert "no file was written" in error
    assert list(tmp_path.iterdir()) == []


def detections(*rows: tuple[float, float, int]) -> RawDetections:
    """Detections of (x1, score, label)."""
    table = np.array(rows, dtype=np.float64).reshape(-1, 3)
    boxes = np.stack((table[:, 0], table[:, 0], table[:, 0] + 9, table[:, 0] + 9), axis=1)
    return RawDetections(
        boxes.astype(np.float32), table[:, 1].astype(np.float32), table[:, 2].astype(np.int64)
    )


BOTH = ((0, 0.9, 0), (50, 0.5, 1), (90, 0.2, 1))


@pytest.mark.parametrize(
    ("found", "what"),
    [
        (BOTH, None),
        (((0, 0.9 + 5e-6, 0), (50 + 5e-4, 0.5, 1), (90, 0.2, 1)), None),
        (BOTH[:2], "2 detections instead of 3"),
        (((0, 0.9, 1), *BOTH[1:]), "detection 0 is label 1"),
        ((BOTH[0], (50.01, 0.5, 1), BOTH[2]), "detection 1 is label 1 at"),
        ((BOTH[0], (50, 0.5001, 1), BOTH[2]), "detection 1 has the score 0.5001"),
        ((BOTH[0], (50, np.nan, 1), BOTH[2]), "detection 1 has the score nan"),
        ((BOTH[0], BOTH[0], BOTH[2]), "detection 1 has the score"),
    ],
)
def test_differences_are_found(found, what):
    assert (difference(detections(*BOTH), detections(*found), 100) or "None").startswith(str(what))


@pytest.mark.parametrize(("moved", "is_same"), [(5e-3, True), (1e-2, False)])
def test_large_boxes_may_differ_more(moved, is_same):
    box = np.array([[10, 20, 650, 300]], np.float32)
    expected = RawDetections(box, np.array([0.5], np.float32), np.array([0]))
    found = expected._replace(boxes=box + np.float32(moved))
    assert (difference(expected, found, 100) is None) == is_same


def test_rounding_may_change_the_order_of_equal_scores():
    expected = detections((0, 0.9, 0), (50, 0.9 - 3e-6, 1), (90, 0.2, 1))
    found = detections(
        (50, 0.9, 1), (0, 0.9 - 3e-6, 0), (70, 0.2, 0)
    )  # the last one is cut off by max_detections
    assert difference(expected, found, 3) is None
    assert difference(expected, found, 4).startswith("detection 2 is label 0")


def test_mistakes_have_one_clear_error(exported, checkpoint, tmp_path):
    with pytest.raises(ValueError, match=r"model.txt: a file of the format onnx has the suffix .onnx"):
        export(checkpoint, tmp_path / "model.txt")
    with pytest.raises(ValueError, match="unknown format 'onx'.*onnx"):
        export(checkpoint, format="onx")
    with pytest.raises(ValueError, match="score_threshold=7"):
        export(checkpoint, score_threshold=7)
    with pytest.raises(ValueError, match="score_treshold.*score_threshold"):
        export(checkpoint, score_treshold=0.1)
    with pytest.raises(FileNotFoundError, match=r"none.onnx does not exist"):
        fcos_fast.load(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ValueError, match=r"text.onnx cannot be loaded by onnxruntime"):
        fcos_fast.load(tmp_path / "text.onnx")
    with pytest.raises(ValueError, match="runs on the CPU in float32; got device 'cuda'"):
        fcos_fast.load(exported, device="cuda")
    with pytest.raises(ValueError, match="its score_threshold is 0.05 and cannot be changed to 0.01; export"):
        fcos_fast.load(exported, lowest_score=0.01)
    fcos_fast.load(exported, lowest_score=0.3)


def test_openvino_files(exported, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(export_run, "onnx_model", lambda *_: onnx.load(exported))
    path = export(checkpoint, tmp_path / "model.xml", "openvino", max_detections=40)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.bin", "model.xml"]
    predictor = fcos_fast.load(path)
    assert predictor.categories == SHAPES
    image = photos((110, 150))[0]
    expected = fcos_fast.load(exported).predict(image, 0.1)
    found = predictor.predict(image, 0.1)
    assert len(found) >= 5
    assert found.labels.tolist() == expected.labels.tolist()
    np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-3)
    path.with_suffix(".bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"model.bin does not exist"):
        fcos_fast.load(path)


def test_a_model_of_others_is_rejected(exported, tmp_path):
    proto = onnx.load(exported)
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "other.onnx")
    with pytest.raises(ValueError, match=r"other.onnx has the format None in its metadata"):
        fcos_fast.load(tmp_path / "other.onnx")
