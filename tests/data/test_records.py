"""Packed records: they give back what was packed, and have no objects per image."""

from __future__ import annotations

import json
import pickle
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fcos_fast.data import Categories, DetectionDataset, Record, load_coco
from fcos_fast.data.coco_regular import read_regular
from fcos_fast.data.records import Records, Strings


def record(name: str, count: int, **changes) -> Record:
    rng = np.random.default_rng(count)
    corners = rng.random((count, 2), np.float32) * 20
    boxes = np.concatenate((corners, corners + 1 + rng.random((count, 2), np.float32)), axis=1)
    made = Record(
        name,
        (40, 30),
        boxes,
        rng.integers(3, size=count),
        rng.random(count) < 0.5,
        Path("images", name),
        areas=rng.random(count, np.float32),
        image_id=count,
    )
    return replace(made, **changes)


def assert_equal(found: Record, expected: Record) -> None:
    for name, value in vars(expected).items():
        if isinstance(value, np.ndarray):
            assert getattr(found, name).dtype == value.dtype
            assert np.array_equal(getattr(found, name), value)
        else:
            assert getattr(found, name) == value


@pytest.mark.parametrize(
    "ids", [[5, 2, -1], ["a", 7, "b"], [None, None, None], [2**70, 1, 2], [None, 3, "x"]]
)
def test_records_are_what_was_packed(ids):
    names = ["é.jpg", "\udce9.jpg", "\ud83d.jpg"]  # undecodable file names are surrogates
    given = [record(names[i], count, image_id=ids[i]) for i, count in enumerate((3, 0, 2))]
    given[1] = replace(given[1], image=np.zeros((3, 30, 40), np.uint8))
    packed = pickle.loads(pickle.dumps(Records.of(given)))
    assert len(packed) == 3
    for found, expected in zip(packed, given, strict=True):
        assert_equal(found, expected)
    assert_equal(packed[-1], given[-1])
    assert [r.name for r in packed[1:]] == names[1:]
    with pytest.raises(IndexError):
        packed[3]


def test_missing_areas_are_those_of_the_boxes():
    boxes = np.array([[1, 2, 4, 7]], np.float32)
    assert Records.of([record("a", 1, boxes=boxes, areas=None)])[0].areas.tolist() == [15]


def test_a_subset_is_a_dataset():
    data = DetectionDataset([record(f"{i}", i) for i in range(5)], Categories(("a", "b", "c")))
    part = DetectionDataset(data.records[1:4], data.categories)
    data.records = data.records[:2]
    assert ([r.name for r in data.records], [len(r.boxes) for r in part.records]) == (["0", "1"], [1, 2, 3])
    assert len(DetectionDataset([], data.categories)) == 0


def test_arrays_of_different_lengths():
    with pytest.raises(
        ValueError, match="record a: has 2 boxes, but labels, ignore and areas of length 2, 1, 2"
    ):
        Records.of([record("a", 2, ignore=np.zeros(1, bool))])


def test_strings():
    strings = Strings(["", "a", "größe", ""])
    assert list(strings) == ["", "a", "größe", ""]
    assert strings[1:3] == ["a", "größe"]


def coco(root: Path, images: int) -> Path:
    """A COCO dataset in which every kind of value occurs that a regular file may have."""
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir(parents=True)
    (root / "train").mkdir()
    listed = [{"id": 7 * i, "file_name": f"ü{i}.jpg", "width": 640, "height": 480.0} for i in range(images)]
    for entry in listed:
        (root / "train" / entry["file_name"]).touch()
    annotations = [
        {
            "id": i,
            "image_id": 7 * int(rng.integers(images)),
            "category_id": int(rng.choice([3, 1, 90])),
            "bbox": [*(rng.random(2) * 300).tolist(), *(rng.random(2) * 100 + 1).tolist()],
            "segmentation": [[1, 2, 3]],
            **({"area": float(rng.random() * 100)} if i % 3 else {"iscrowd": i % 2, "area": 5}),
        }
        for i in range(4 * images)
    ]
    annotations[1]["bbox"] = [600, 400, 80, 10]  # clipped
    annotations[2]["bbox"] = [-5, 1, 5, 10]  # skipped
    annotations[3]["area"] = None
    categories = [{"id": i, "name": f"class {i}"} for i in (90, 1, 3)]
    content = {"images": listed, "annotations": annotations, "categories": categories}
    (root / "annotations" / "train.json").write_text(json.dumps(content))
    return root


def test_the_fast_way_through_a_coco_file_finds_the_same(tmp_path):
    root = coco(tmp_path, 50)
    file = root / "annotations" / "train.json"
    assert read_regular(file) is not None
    fast = load_coco(root)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())  # a byte order mark needs a closer look
    assert read_regular(file) is None
    slow = load_coco(root)
    assert (fast.categories, fast.report) == (slow.categories, slow.report)
    assert fast.report.boxes == 199
    assert fast.report.faults == {
        "box outside the image, skipped": 1,
        "box partly outside the image, clipped": 1,
    }
    for found, expected in zip(fast.records, slow.records, strict=True):
        assert_equal(found, expected)


@pytest.mark.parametrize(
    "change",
    [
        ('"bbox": [', '"bbox": [NaN, '),
        ('"iscrowd": 1', '"iscrowd": "maybe"'),
        ('"area": 5', '"area": -5'),
        ('"image_id": 7,', '"image_id": 8,'),
        ('"id": 3,', '"id": 4,'),
        ('"category_id": 90', '"category_id": 91'),
        ('"width": 640', '"width": 0.5'),
        ("[[1, 2, 3]]", '"\xff"'),
    ],
)
def test_an_irregular_file_gets_a_closer_look(tmp_path, change):
    file = coco(tmp_path, 5) / "annotations" / "train.json"
    text = file.read_text()
    assert change[0] in text
    file.write_bytes(text.replace(*change, 1).encode("latin-1"))
    assert read_regular(file) is None


def test_a_dataset_has_few_objects(tmp_path):
    root = coco(tmp_path, 3000)
    load_coco(root)  # imports what it needs
    before = sys.getallocatedblocks()
    data = load_coco(root)
    assert sys.getallocatedblocks() - before < 500
    assert len(data) == 3000
