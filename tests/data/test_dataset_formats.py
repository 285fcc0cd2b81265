"""The same dataset in every format: equal images, boxes and AP; and folders in no known format."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import yaml

from fcos_fast.data import DataError, SyntheticConfig, load_dataset, write_voc
from fcos_fast.engine.average_precision import average_precision


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """A generated dataset in VOC, COCO and YOLO format."""
    base = tmp_path_factory.mktemp("formats")
    write_voc(
        base / "voc", {"train": 6}, config=SyntheticConfig(size=(64, 96), object_size=(16, 48), max_objects=3)
    )
    dataset = load_dataset(base / "voc", "train")
    truth = dataset.coco_ground_truth()
    (base / "coco" / "annotations").mkdir(parents=True)
    (base / "coco" / "annotations" / "train.json").write_text(json.dumps(truth))
    (base / "yolo" / "labels" / "train").mkdir(parents=True)
    shutil.copytree(base / "voc" / "JPEGImages", base / "coco" / "train")
    shutil.copytree(base / "voc" / "JPEGImages", base / "yolo" / "images" / "train")
    content = {"names": list(dataset.categories.names), "train": "images/train"}
    (base / "yolo" / "data.yaml").write_text(yaml.safe_dump(content))
    for record in dataset.records:
        w, h = record.size
        rows = [
            f"{label} {(x1 + x2) / 2 / w} {(y1 + y2) / 2 / h} {(x2 - x1) / w} {(y2 - y1) / h}"
            for (x1, y1, x2, y2), label in zip(record.boxes.tolist(), record.labels, strict=True)
        ]
        path = (base / "yolo" / "labels" / "train" / record.name).with_suffix(".txt")
        path.write_text("\n".join(rows))
    return base


@pytest.mark.parametrize("dataset_format", ["coco", "yolo"])
def test_the_same_dataset_in_another_format(roots, dataset_format):
    expected, found = load_dataset(roots / "voc", "train"), load_dataset(roots / dataset_format, "train")
    assert found.categories.names == expected.categories.names
    for mine, theirs in zip(found.records, expected.records, strict=True):
        assert (mine.name, mine.size) == (theirs.name, theirs.size)
        assert mine.labels.tolist() == theirs.labels.tolist()
        np.testing.assert_allclose(mine.boxes, theirs.boxes, rtol=0, atol=1e-4)
    assert torch.equal(found[0][0], expected[0][0])


def test_ap_is_the_same_in_every_format(roots):
    datasets = [load_dataset(roots / dataset_format, "train") for dataset_format in ("voc", "coco", "yolo")]
    detections = []
    for i, record in enumerate(datasets[0].records):
        boxes = torch.tensor(record.boxes) + i  # worse with every image
        labels = torch.tensor(record.labels)
        detections.append({"boxes": boxes, "scores": torch.linspace(1, 0.5, len(boxes)), "labels": labels})
    results = [average_precision(d.coco_ground_truth(), detections, d.categories) for d in datasets]
    assert 0.1 < results[0].ap < 1
    for result in results[1:]:
        assert result.ap == pytest.approx(results[0].ap, abs=1e-6)
        assert result.ap50 == pytest.approx(results[0].ap50, abs=1e-6)


def test_the_error_for_an_unrecognized_format_lists_all(tmp_path):
    (tmp_path / "images").mkdir()
    with pytest.raises(
        DataError, match=r"unrecognized dataset format \(VOC: .*; COCO: .*; YOLO: .*\); it contains images"
    ):
        load_dataset(tmp_path)
