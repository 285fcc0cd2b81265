"""Checkpoints and exported detectors in every engine."""

import itertools
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import fcos_fast
from fcos_fast.export.check import difference
from fcos_fast.inference import fastest, loading, runtimes
from fcos_fast.inference.fastest import FastestEngine
from fcos_fast.inference.onnx import OnnxEngine
from fcos_fast.inference.openvino import OpenVinoEngine
from tests.export.models import photos

pytest.importorskip("openvino", reason="engines need the extra openvino")

IMAGES = photos((96, 128), (120, 100))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache; engines are timed for a moment only."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fastest, "SECONDS", 0.01)
    return tmp_path / "cache" / "fcos_fast"


@pytest.fixture
def exported_once(exported, monkeypatch):
    """Exporting a checkpoint returns the file that was exported before."""
    changes = []
    monkeypatch.setattr(
        loading, "exported_copy", lambda path, digest, changed: changes.append(changed) or exported
    )
    return changes


def detect(predictor):
    return predictor.engine.detect(IMAGES)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "auto"])
def test_a_checkpoint_detects_the_same_in_every_engine(engine, checkpoint, exported_once, capsys):
    expected = detect(fcos_fast.load(checkpoint, precision="float32", max_detections=40))
    predictor = fcos_fast.load(checkpoint, precision="float32", max_detections=40, engine=engine)
    for found, wanted in zip(detect(predictor), expected, strict=True):
        assert len(found.scores) > 10
        assert difference(wanted, found, 40) is None
    assert exported_once[0] == {"max_detections": 40}
    kinds = {"onnxruntime": OnnxEngine, "openvino": OpenVinoEngine, "auto": FastestEngine}
    assert type(predictor.engine) is kinds[engine]
    if engine == "auto":
        line = capsys.readouterr().err
        assert line.startswith("engine for 2x")
        assert all(name in line for name in ("torch", "onnxruntime", "openvino"))


def test_an_exported_file_in_every_engine(exported, capsys):
    expected = detect(fcos_fast.load(exported))
    for engine, kind in (("openvino", OpenVinoEngine), ("auto", FastestEngine)):
        predictor = fcos_fast.load(exported, engine=engine)
        assert type(predictor.engine) is kind
        for found, wanted in zip(detect(predictor), expected, strict=True):
            assert difference(wanted, found, 40) is None
    assert "torch" not in capsys.readouterr().err


def test_auto_of_an_exported_file_needs_no_torch(exported):
    program = (
        "import sys, numpy, fcos_fast\n"
        f"p = fcos_fast.load({str(exported)!r}, engine='auto')\n"
        "p.predict(numpy.zeros((96, 128, 3), numpy.uint8))\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "engine for 1x96x128: " in done.stderr


def test_a_checkpoint_is_exported_once(checkpoint, cache, monkeypatch, capsys):
    written = []

    def export(path, output, format, **changes):
        written.append(changes)
        output.write_bytes(b"")
        print("checked")

    monkeypatch.setattr("fcos_fast.export.export", export, raising=False)
    digest = runtimes.file_digest(checkpoint)
    first = runtimes.exported_copy(checkpoint, digest, {})
    assert first == runtimes.exported_copy(checkpoint, digest, {})
    assert first.parent == cache / "exports"
    other = runtimes.exported_copy(checkpoint, digest, {"max_detections": 5})
    assert other != first
    assert written == [{}, {"max_detections": 5}]
    out, err = capsys.readouterr()
    assert err.count("exporting") == err.count("checked") == 2
    assert out == ""


def test_exports_that_were_used_last_are_kept(checkpoint, cache, monkeypatch):
    monkeypatch.setattr(
        "fcos_fast.export.export", lambda path, output, *_, **changes: output.write_bytes(b"")
    )
    digest = runtimes.file_digest(checkpoint)

    def copy(limit):
        path = runtimes.exported_copy(checkpoint, digest, {"max_detections": limit})
        os.utime(path, times=(next(seconds), next(seconds)))
        return path

    seconds = itertools.count(1000)
    copies = [copy(limit) for limit in range(1, runtimes.KEPT_EXPORTS + 1)]
    assert copy(1) == copies[0]
    newest = copy(50)
    assert {*newest.parent.iterdir()} == {*copies, newest} - {copies[1]}


def test_a_checkpoint_that_changes_after_it_was_loaded(checkpoint, tmp_path, capsys):
    """Training writes the next one under the same name: the engines would detect different objects."""
    path = tmp_path / "best.pt"
    path.write_bytes(checkpoint.read_bytes())
    predictor = fcos_fast.load(path, precision="float32", engine="auto")
    path.write_bytes(b"the next epoch")
    assert len(detect(predictor)) == 2
    err = capsys.readouterr().err
    assert f"engine onnxruntime is skipped: {path} has changed since it was loaded; load it again" in err
    assert "engine for 2x128x128: torch (torch " in err


def test_auto_without_a_cache_runs_in_torch(checkpoint, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert len(detect(fcos_fast.load(checkpoint, engine="auto"))) == 2
    assert "engine openvino is skipped: " in capsys.readouterr().err


@pytest.mark.parametrize("engine", ["torch", "onnxruntime", "openvino"])
def test_threads_that_share_an_engine(engine, checkpoint, exported_once):
    detector = fcos_fast.load(checkpoint, precision="float32", max_detections=40, engine=engine).engine
    images = photos(*((64 + 32 * i, 128) for i in range(6)))
    expected = [detector.detect([image])[0] for image in images]
    with ThreadPoolExecutor(6) as pool:
        found = [pool.submit(detector.detect, [image]) for image in images * 8]
    for wanted, result in zip(expected * 8, found, strict=True):
        assert difference(wanted, result.result()[0], 40) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "openvine"}, "unknown engine 'openvine'.*openvino"),
        ({"engine": "openvino", "precision": "bfloat16"}, "in float32; got .* precision 'bfloat16'"),
        ({"engine": "onnxruntime", "threads": 0}, "threads=0; expected a positive integer or None"),
        ({"threads": 1.5}, r"threads=1\.5; expected"),
    ],
)
def test_mistakes_with_a_checkpoint(options, message, checkpoint):
    with pytest.raises(ValueError, match=message):
        fcos_fast.load(checkpoint, **options)


def test_an_exported_file_has_no_torch_engine(exported):
    with pytest.raises(ValueError, match=r"best\.onnx does not run in torch; choose another engine"):
        fcos_fast.load(exported, engine="torch")


def test_detections_are_arrays(exported):
    (found, _) = detect(fcos_fast.load(exported, engine="openvino"))
    assert [type(x) for x in found] == [np.ndarray] * 3
