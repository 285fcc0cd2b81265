"""``.pt2`` files find what their checkpoint finds, and describe themselves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import fcos_fast
from fcos_fast.cli.main import main
from fcos_fast.data.synthetic import CATEGORIES as SHAPES
from fcos_fast.errors import ExportError
from fcos_fast.export import export
from fcos_fast.export.check import difference
from fcos_fast.export.torch_file import save_compiled, save_program
from fcos_fast.inference.program import ProgramEngine
from fcos_fast.inference.torch_engine import TorchEngine
from tests.export.models import CATEGORIES, photos, save_photos, small_detector

SIZES = ([(150, 200)], [(96, 160), (90, 131), (96, 160)], [(200, 70), (40, 40)])
"""One image, three with padding, and one of 96x96 pixels, of which the highest of five levels is a single cell."""


def assert_same(engine: ProgramEngine, original: TorchEngine) -> None:
    for sizes in SIZES:
        images = photos(*sizes)
        for found, expected in zip(engine.detect(images), original.detect(images), strict=True):
            assert len(expected.labels) >= 3
            assert difference(expected, found, original.model.config.max_detections) is None
            assert [x.dtype for x in found] == [np.float32, np.float32, np.int64]


@pytest.mark.parametrize("preset", ["torchvision", "torchvision-retinanet"])
def test_a_program_detects_the_same_in_every_size(preset, tmp_path):
    model = small_detector(preset)
    save_program(model, CATEGORIES, tmp_path / "model.pt2")
    engine = ProgramEngine(tmp_path / "model.pt2")
    assert (engine.categories, engine.config) == (CATEGORIES, model.config)
    assert_same(engine, TorchEngine(model, CATEGORIES))


@pytest.mark.slow
def test_a_compiled_program_detects_the_same_in_every_size(tmp_path, monkeypatch):
    monkeypatch.setattr(torch._inductor.config.aot_inductor, "debug_compile", True)  # a third of the time
    model = small_detector("adelaidet-rt")
    save_compiled(model, CATEGORIES, tmp_path / "model.pt2")
    engine = ProgramEngine(tmp_path / "model.pt2")
    assert (engine.categories, engine.config) == (CATEGORIES, model.config)
    assert_same(engine, TorchEngine(model, CATEGORIES))


def test_deformable_convolutions(tmp_path):
    model = small_detector("mmdetection-tricks", head_dcn="v2", max_level=5)
    save_program(model, CATEGORIES, tmp_path / "model.pt2")
    assert_same(ProgramEngine(tmp_path / "model.pt2"), TorchEngine(model, CATEGORIES))


def test_the_file_describes_itself(program):
    about = {"names": ""}
    loaded = torch.export.load(program, extra_files=about)
    assert about["names"] == '["' + '", "'.join(SHAPES.names) + '"]'
    assert (about["version"], about["size_divisor"]) == (fcos_fast.__version__, "32")
    assert (about["score_threshold"], about["iou_threshold"], about["max_detections"]) == (
        "0.05",
        "0.6",
        "40",
    )
    assert str(Path(fcos_fast.__file__).parent).encode() not in program.read_bytes()  # paths of this machine
    # as other programs run it; the smallest image with which no level is a single cell
    boxes, scores, labels, counts = loaded.module()(torch.rand(1, 3, 32, 64), torch.tensor([[32, 64]]))
    assert boxes.shape == (1, 40, 4)
    assert (scores[0, counts[0] :] == 0).all()
    assert (labels[0, counts[0] :] == -1).all()


def test_load_and_detect_take_it(program, checkpoint, tmp_path):
    (image,) = save_photos(tmp_path, (110, 150))
    found = fcos_fast.load(program).predict(str(image), score_threshold=0.1)
    expected = fcos_fast.load(checkpoint, "cpu", "float32").predict(str(image), score_threshold=0.1)
    assert len(found) == 40  # as --max_detections says
    assert found.labels.tolist() == expected.labels[:40].tolist()
    assert list(found.names) == list(expected.names[:40])
    np.testing.assert_allclose(found.boxes, expected.boxes[:40], atol=1e-3)
    np.testing.assert_allclose(found.scores, expected.scores[:40], atol=1e-5)


def test_a_file_that_differs_is_not_written(program, checkpoint, tmp_path, monkeypatch):
    def moved(self, *inputs, run=ProgramEngine.run):
        boxes, *others = run(self, *inputs)
        return boxes + 0.01, *others

    monkeypatch.setattr(ProgramEngine, "run", moved)
    monkeypatch.setattr(
        "fcos_fast.export.torch_file.torch.export.save",
        lambda _, path, extra_files: Path(path).write_bytes(program.read_bytes()),
    )
    with pytest.raises(ExportError, match="differs from the original on generated image 0"):
        export(checkpoint, tmp_path / "model.pt2", "torch-export", max_detections=40)
    assert list(tmp_path.iterdir()) == []


def test_mistakes_have_one_clear_error(program, checkpoint, tmp_path, monkeypatch, capsys):
    with pytest.raises(FileNotFoundError, match=r"none.pt2 does not exist"):
        fcos_fast.load(tmp_path / "none.pt2")
    (tmp_path / "text.pt2").write_text("no model")
    with pytest.raises(ValueError, match=r"text.pt2 cannot be loaded by torch .*not a zip file"):
        fcos_fast.load(tmp_path / "text.pt2")
    torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.ones(2),)), tmp_path / "other.pt2")
    with pytest.raises(ValueError, match=r"other.pt2 has the format '' in its metadata"):
        fcos_fast.load(tmp_path / "other.pt2")
    with pytest.raises(ValueError, match=r"does not run in onnxruntime"):
        fcos_fast.load(program, engine="onnxruntime")
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    output = tmp_path / "compiled.pt2"
    command = ["export", "--checkpoint", str(checkpoint), "--format", "aoti", "--output", str(output)]
    assert main(command) == 1
    assert "aoti needs a C++ compiler, and there is none; install g++" in capsys.readouterr().err
    assert not output.exists()
