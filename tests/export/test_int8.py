"""Quantized detectors."""

from types import SimpleNamespace

import numpy as np
import pytest

import fcos_fast
from fcos_fast.data import load_dataset
from fcos_fast.data.synthetic import CATEGORIES
from fcos_fast.errors import ExportError
from fcos_fast.export import export_int8, int8, quantized
from fcos_fast.inference.engine import RawDetections

openvino = pytest.importorskip("openvino", reason="int8 needs the extra openvino")
pytest.importorskip("nncf", reason="int8 needs the extra openvino")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    from fcos_fast.data import SyntheticConfig, write_voc

    root = tmp_path_factory.mktemp("data")
    write_voc(root, {"val": 4}, config=SyntheticConfig(size=(96, 128), object_size=(24, 60), max_objects=3))
    return load_dataset(root, "val", CATEGORIES)  # those of the checkpoint


def test_the_network_is_in_int8_and_the_rest_is_not(checkpoint, dataset, tmp_path, capsys):
    from fcos_fast.export.int8 import outside_network

    images = [record.image for record in dataset.records]
    folder = tmp_path / "new"
    output = export_int8(checkpoint, folder / "small.xml", images, dataset, max_ap_drop=100)
    assert output == folder / "small.xml"
    out = capsys.readouterr().out
    assert "AP on 4 images: " in out
    assert {path.name for path in folder.iterdir()} == {"small.xml", "small.bin"}
    operations = openvino.Core().read_model(output).get_ordered_ops()
    kinds = {operation.get_type_name() for operation in operations}
    assert "FakeQuantize" in kinds
    outside = set(outside_network(openvino.Core().read_model(output)))
    quantized = {o.get_friendly_name() for o in operations if o.get_type_name() == "FakeQuantize"}
    assert quantized
    assert not quantized & outside - {o.get_friendly_name() for o in operations if _is_first(o)}
    (found,) = fcos_fast.load(output).engine.detect([np.full((96, 128, 3), 90, np.uint8)])
    assert found.boxes.shape[1] == 4


def _is_first(operation):
    """Does it quantize the input of a convolution, before the network?"""
    return any(
        port.get_node().get_type_name() in ("Convolution", "GroupConvolution")
        for output in operation.outputs()
        for port in output.get_target_inputs()
    )


class Finder:
    """Finds the true boxes, moved by so many pixels."""

    def __init__(self, dataset, moved):
        self.records, self.moved = iter(dataset.records), moved

    def detect(self, images):
        found = []
        for record in (next(self.records) for _ in images):
            scores = np.ones(len(record.labels), np.float32)
            found.append(RawDetections(record.boxes + np.float32(self.moved), scores, record.labels))
        return found


def test_a_lower_average_precision_is_rejected(dataset, capsys):
    quantized._compare(Finder(dataset, 0), Finder(dataset, 0), dataset, 0.5, None)
    assert "AP on 4 images: 100.00 in float32, 100.00 in int8" in capsys.readouterr().out
    with pytest.raises(ExportError, match=r"lowers AP from 100\.00 to .*, by more than 0\.5 points; no file"):
        quantized._compare(Finder(dataset, 0), Finder(dataset, 6), dataset, 0.5, None)
    quantized._compare(Finder(dataset, 0), Finder(dataset, 6), dataset, 100, None)


def test_a_comparison_of_nothing_says_so(dataset, capsys):
    quantized._compare(Finder(dataset, 500), Finder(dataset, 500), dataset, 0.5, None)
    assert "no object was found, so the comparison says little" in capsys.readouterr().out


def test_why_the_process_failed_is_said_in_one_line(exported, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"nothing")
    with pytest.raises(
        ExportError, match=r"^the model cannot be quantized: .*broken\.png: is not an image; .*$"
    ):
        int8.quantize(exported, tmp_path / "small.xml", [tmp_path / "broken.png"])


def test_nothing_is_written_if_it_fails(checkpoint, dataset, tmp_path, monkeypatch):
    def fail(*arguments):
        raise ExportError("the model cannot be quantized")

    monkeypatch.setattr(quantized, "onnx_model", lambda *arguments: SimpleNamespace(SerializeToString=bytes))
    monkeypatch.setattr(quantized, "OpenVinoEngine", lambda path: None)
    monkeypatch.setattr(quantized, "check_export", lambda *arguments: 1)
    monkeypatch.setattr(quantized, "quantize", fail)
    images = [record.image for record in dataset.records]
    with pytest.raises(ExportError, match="cannot be quantized"):
        export_int8(checkpoint, tmp_path / "small.xml", images, dataset)
    assert list(tmp_path.iterdir()) == []


def test_images_are_needed(checkpoint, dataset):
    with pytest.raises(ValueError, match="int8 needs images like those that the detector will see"):
        export_int8(checkpoint, None, [], dataset)


def test_a_dataset_of_other_classes(checkpoint, dataset, tmp_path):
    other = load_dataset(dataset.records[0].image.parents[1], "val")
    message = "the dataset has the classes circle, .*, the checkpoint circle, cross, .*; load it with the categories"
    with pytest.raises(ValueError, match=message):
        export_int8(checkpoint, tmp_path / "small.xml", [other.records[0].image], other)
