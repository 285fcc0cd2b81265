"""Detections: choosing among them, and their other forms, each held against the library that reads it."""

from __future__ import annotations

import contextlib
import io
import json
import sys

import numpy as np
import pytest
from PIL import Image

from fcos_fast.data import Categories
from fcos_fast.inference import Detections

CATEGORIES = Categories(("red cell", "white cell", "platelet"), ids=(5, 9, 2))
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.fixture
def found() -> Detections:
    boxes = [[1.5, 2.25, 20.5, 30.0], [30, 10, 60, 40], [0, 0, 5, 5], [10.25, 10.5, 12, 13]]
    return Detections(
        np.array(boxes, np.float32),
        np.array([0.9, 0.8, 0.5, 0.25], np.float32),
        np.array([0, 2, 0, 1]),
        IMAGE,
        CATEGORIES,
        source="a.jpg",
    )


def test_single_detections(found):
    assert len(found) == 4
    assert found[1] == ("platelet", 2, pytest.approx(0.8), (30, 10, 60, 40))
    assert found[-1].name == "white cell"
    assert [d.name for d in found] == list(found.names) == ["red cell", "platelet", "red cell", "white cell"]
    assert [type(value) for value in found[0]] == [str, int, float, tuple]
    with pytest.raises(IndexError):
        found[4]


def test_slices_masks_and_indices_are_detections(found):
    for rows, expected in (
        (slice(1, 3), [1, 2]),
        (found.scores > 0.6, [0, 1]),
        ([3, 0], [3, 0]),
        (found.labels == 7, []),
    ):
        some = found[rows]
        assert np.array_equal(some.boxes, found.boxes[expected].reshape(-1, 4))
        assert np.array_equal(some.scores, found.scores[expected])
        assert some.names == tuple(found.names[i] for i in expected)
        assert (some.source, some.image is IMAGE) == ("a.jpg", True)


def test_filter(found):
    assert found.filter().names == found.names
    assert found.filter("red cell").scores.tolist() == pytest.approx([0.9, 0.5])
    assert found.filter(["red cell", "white cell"]).labels.tolist() == [0, 0, 1]
    assert found.filter([]).names == ()
    assert found.filter(score=0.5).scores.tolist() == pytest.approx([0.9, 0.8, 0.5])
    assert found.filter(score={"red cell": 0.6}).labels.tolist() == [0, 2, 1]
    assert found.filter(classes=("red cell",), score=0.6).labels.tolist() == [0]
    with pytest.raises(ValueError, match="unknown class 'red'; did you mean 'red cell'"):
        found.filter("red")
    with pytest.raises(ValueError, match="unknown class 'cell'"):
        found.filter(score={"cell": 0.5})
    with pytest.raises(ValueError, match=r"score threshold 50; expected numbers from 0 to 1"):
        found.filter(score=50)


def test_crops_are_the_image_inside_the_boxes(found):
    first, second, third, _ = found.crops()
    assert np.array_equal(first, IMAGE[2:30, 1:21])
    assert np.array_equal(second, IMAGE[10:40, 30:60])
    assert np.array_equal(third, IMAGE[:5, :5])


def test_crop_of_a_box_without_area_or_outside_is_one_pixel_or_more():
    boxes = np.array([[60, 40, 60, 40], [-5, -5, -1, -1], [3, 3, 3, 9]], np.float32)
    found = Detections(boxes, np.ones(3, np.float32), np.zeros(3, int), IMAGE, CATEGORIES)
    assert [crop.size for crop in found.crops()] == [(1, 1), (1, 1), (1, 6)]


def test_draw_marks_the_boxes_only(found):
    drawn = np.asarray(found.draw())
    assert drawn.shape == IMAGE.shape
    assert not np.array_equal(drawn[10:40, 30:60], IMAGE[10:40, 30:60])
    assert np.array_equal(np.asarray(found[[]].draw()), IMAGE)


def test_to_dict_is_json(found):
    text = json.loads(json.dumps(found.to_dict()))
    assert text[0] == {"class": "red cell", "label": 0, "score": 0.9, "box": [1.5, 2.25, 20.5, 30.0]}


def test_to_coco_is_read_by_pycocotools(found):
    coco = pytest.importorskip("pycocotools.coco")
    truth = coco.COCO()
    truth.dataset = {
        "images": [{"id": 17, "width": 60, "height": 40}],
        "annotations": [],
        "categories": [{"id": i, "name": n} for i, n in zip(CATEGORIES.ids, CATEGORIES.names, strict=True)],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        results = truth.loadRes(found.to_coco(17))
    annotations = results.loadAnns(results.getAnnIds(imgIds=[17]))
    assert [a["category_id"] for a in annotations] == [5, 2, 5, 9]
    assert [a["score"] for a in annotations] == pytest.approx(found.scores.tolist())
    boxes = np.array([a["bbox"] for a in annotations])
    assert np.allclose(np.hstack((boxes[:, :2], boxes[:, :2] + boxes[:, 2:])), found.boxes)


def test_to_yolo_is_read_by_supervision(found, tmp_path):
    supervision = pytest.importorskip("supervision")
    for name in ("images", "labels"):
        (tmp_path / name).mkdir()
    Image.fromarray(IMAGE).save(tmp_path / "images/a.png")
    lines = found.to_yolo().splitlines()
    assert [float(line.split()[5]) for line in lines] == pytest.approx(found.scores.tolist())
    truth = "\n".join(line.rsplit(" ", 1)[0] for line in lines)  # a label file has no scores
    (tmp_path / "labels/a.txt").write_text(truth)
    (tmp_path / "data.yaml").write_text(f"names: {list(CATEGORIES.names)}\nnc: 3\n")
    dataset = supervision.DetectionDataset.from_yolo(
        str(tmp_path / "images"), str(tmp_path / "labels"), str(tmp_path / "data.yaml")
    )
    (annotations,) = dataset.annotations.values()
    assert np.allclose(annotations.xyxy, found.boxes, atol=1e-3)
    assert annotations.class_id.tolist() == found.labels.tolist()


def test_to_pandas(found):
    pandas = pytest.importorskip("pandas")
    frame = found.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == ["class", "label", "score", "x1", "y1", "x2", "y2"]
    assert frame.groupby("class").size().to_dict() == {"red cell": 2, "platelet": 1, "white cell": 1}
    assert np.array_equal(frame[["x1", "y1", "x2", "y2"]], found.boxes)
    assert len(found[[]].to_pandas()) == 0


def test_to_supervision(found):
    supervision = pytest.importorskip("supervision")
    theirs = found.to_supervision()
    assert isinstance(theirs, supervision.Detections)
    assert np.array_equal(theirs.xyxy, found.boxes)
    assert theirs.with_nms(0.5, class_agnostic=False).class_id.tolist() == [0, 2, 0, 1]
    assert theirs[theirs["class_name"] == "platelet"].confidence.tolist() == pytest.approx([0.8])
    assert supervision.BoxAnnotator().annotate(IMAGE.copy(), theirs).shape == IMAGE.shape
    assert len(supervision.Detections.merge([theirs, found[[]].to_supervision()])) == 4


@pytest.mark.parametrize(("method", "module"), [("to_pandas", "pandas"), ("to_supervision", "supervision")])
def test_what_to_install(found, monkeypatch, method, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ModuleNotFoundError, match=f"{method} needs {module}; pip install {module}"):
        getattr(found, method)()
