"""COCO files: against pycocotools, variants of exporters, and one-line errors."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from fcos_fast.data import AugmentConfig, Categories, DataError, load_coco, load_dataset, train_loader
from fcos_fast.models import BatchPacker, FCOSConfig

CONTENT = {
    "images": [
        {"id": 7, "file_name": "a.jpg", "width": 64, "height": 48},
        {"id": 3, "file_name": "b.jpg", "width": 80, "height": 60},
        {"id": 9, "file_name": "empty.jpg", "width": 32, "height": 32},
    ],
    "categories": [
        {"id": 18, "name": "dog", "supercategory": "animal"},
        {"id": 1, "name": "person", "supercategory": "person"},
        {"id": 90, "name": "toothbrush", "supercategory": "indoor"},
    ],
    "annotations": [
        {"id": 1, "image_id": 3, "category_id": 18, "bbox": [10.5, 5, 20, 30], "area": 311.5, "iscrowd": 0},
        {"id": 2, "image_id": 7, "category_id": 1, "bbox": [0, 0, 64, 48], "area": 2000, "iscrowd": 1},
        {"id": 5, "image_id": 7, "category_id": 1, "bbox": [4, 4, 10, 12], "area": None, "iscrowd": 0},
        {"id": 4, "image_id": 3, "category_id": 1, "bbox": [50, 20, 40, 10], "area": 400, "iscrowd": 0},
    ],
}


def write(root, content=CONTENT, file="annotations/instances_train2017.json", images="train2017"):
    path = root / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    (root / images).mkdir(parents=True, exist_ok=True)
    for entry in content["images"]:
        Image.new("RGB", (entry["width"], entry["height"])).save(root / images / entry["file_name"])
    return root


def changed(**lists):
    """A copy of CONTENT with each of the named lists replaced."""
    return {**json.loads(json.dumps(CONTENT)), **lists}


def test_every_box_is_read(tmp_path):
    dataset = load_dataset(write(tmp_path))
    assert dataset.categories == Categories(("person", "dog", "toothbrush"), (1, 18, 90))
    a, b, empty = dataset.records
    assert (a.name, a.size, a.labels.tolist(), a.ignore.tolist()) == (
        "a.jpg",
        (64, 48),
        [0, 0],
        [True, False],
    )
    assert a.boxes.tolist() == [[0, 0, 64, 48], [4, 4, 14, 16]]
    assert a.areas.tolist() == [2000, 120]  # the box's area if the file has none
    assert b.boxes.tolist() == [[10.5, 5, 30.5, 35], [50, 20, 80, 30]]  # the second is clipped
    assert (b.labels.tolist(), b.areas.tolist()) == ([1, 0], [311.5, 400])
    assert len(empty.boxes) == 0
    assert "3 images (1 without boxes), 4 boxes" in str(dataset.report)
    assert "box partly outside the image, clipped: 1" in str(dataset.report)
    image, target = dataset[1]
    assert image.shape == (3, 60, 80)
    assert target["boxes"].shape == (2, 4)


def test_same_as_pycocotools(tmp_path):
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    rng = np.random.default_rng(0)
    images = [
        {"id": int(i), "file_name": f"{i}.jpg", "width": 100, "height": 80} for i in rng.permutation(20)
    ]
    annotations = []
    for number in range(60):
        x, y, w, h = (rng.uniform(0, 40, 4) + np.array([0, 0, 1, 1])).round(2)
        annotations.append({
            "id": number, "image_id": int(rng.integers(20)), "category_id": int(rng.choice([1, 18, 90])),
            "bbox": [x, y, w, h], "area": round(w * h / 2, 2), "iscrowd": int(rng.integers(2)),
        })  # fmt: skip
    root = write(tmp_path, changed(images=images, annotations=annotations))
    theirs = coco.COCO(str(root / "annotations" / "instances_train2017.json"))
    dataset = load_dataset(root, "train2017")
    assert [record.name for record in dataset.records] == [theirs.imgs[i]["file_name"] for i in theirs.imgs]
    ours = dataset.coco_ground_truth()
    wanted = [theirs.imgToAnns[i] for i in theirs.imgs]
    found = [[a for a in ours["annotations"] if a["image_id"] == i] for i in range(20)]
    for mine, their in zip(found, wanted, strict=True):
        for key in ("category_id", "iscrowd"):
            assert [a[key] for a in mine] == [a[key] for a in their]
        np.testing.assert_allclose(
            [a["bbox"] for a in mine], [a["bbox"] for a in their], rtol=1e-5, atol=1e-4
        )
        np.testing.assert_allclose([a["area"] for a in mine], [a["area"] for a in their], rtol=1e-6)
    assert ours["categories"] == [
        {"id": c["id"], "name": c["name"]} for c in sorted(CONTENT["categories"], key=lambda c: c["id"])
    ]


def test_crowds_are_not_trained_on(tmp_path):
    dataset = load_dataset(write(tmp_path))
    plain = AugmentConfig(horizontal_flip=0, brightness=0, contrast=0, saturation=0)
    packer = BatchPacker(FCOSConfig(num_classes=3, min_size=None))
    loader = train_loader(dataset, 3, plain, packer=packer)
    ((_, gt),) = loader
    boxes = gt.boxes[: gt.starts[-1]].tolist()
    assert sorted(boxes) == [[4, 4, 14, 16], [10.5, 5, 30.5, 35], [50, 20, 80, 30]]


@pytest.mark.parametrize(
    ("file", "images", "split"),
    [
        ("annotations/instances_train2017.json", "train2017", "train2017"),
        ("annotations/instances_train2017.json", "train2017", "instances_train2017"),
        ("annotations/instances_train2017.json", "images/train2017", "train"),
        ("annotations/train.json", "images", "train"),
        ("annotations/train.json", "train/images", None),
        ("train/_annotations.coco.json", "train", "train"),
        ("_annotations.coco.json", ".", None),
    ],
)
def test_formats_of_exporters(tmp_path, file, images, split):
    dataset = load_dataset(write(tmp_path, file=file, images=images), split)
    assert len(dataset) == 3
    assert all(record.image.is_file() for record in dataset.records)


def test_files_of_other_tasks_are_not_splits(tmp_path):
    write(tmp_path)
    (tmp_path / "annotations" / "captions_train2017.json").write_text("{}")
    assert len(load_dataset(tmp_path, "train2017")) == 3


def test_validation_has_the_classes_of_training(tmp_path):
    write(tmp_path)
    train = load_dataset(tmp_path, "train2017")
    fewer = changed(
        categories=[{"id": 5, "name": "dog"}],
        annotations=[{"id": 1, "image_id": 3, "category_id": 5, "bbox": [1, 1, 5, 5]}],
    )
    write(tmp_path, fewer, "annotations/instances_val2017.json", "val2017")
    val = load_dataset(tmp_path, "val", train.categories)
    assert val.records[1].labels.tolist() == [train.categories.label_of("dog")]
    assert val.records[1].areas.tolist() == [25]
    with pytest.raises(DataError, match="has boxes of the unknown class 'person'; known are dog. Correct"):
        load_dataset(tmp_path, "train2017", Categories(("dog",)))


def test_roboflows_root_is_not_a_class(tmp_path):
    categories = [
        {"id": 0, "name": "cells", "supercategory": "none"},
        {"id": 1, "name": "RBC", "supercategory": "cells"},
        {"id": 2, "name": "WBC", "supercategory": "cells"},
    ]
    annotations = [{"id": 1, "image_id": 3, "category_id": 2, "bbox": [1, 1, 5, 5]}]
    content = changed(categories=categories, annotations=annotations)
    dataset = load_dataset(write(tmp_path, content, "train/_annotations.coco.json", "train"))
    assert dataset.categories == Categories(("RBC", "WBC"), (1, 2))


@pytest.mark.parametrize(
    ("categories", "names"),
    [
        # COCO's own person, and categories that are their own supercategory
        ([(1, "person", "person"), (2, "car", "vehicle")], ["person", "car"]),
        ([(0, "person", "person"), (1, "hat", "person")], ["person", "hat"]),
        ([(1, "a", "a"), (2, "b", "b")], ["a", "b"]),
        ([(1, "animal", "none"), (2, "dog", "animal")], ["animal", "dog"]),
        ([(0, "animal", ""), (1, "dog", "animal")], ["animal", "dog"]),
        ([(0, "animal", None), (1, "dog", "animal")], ["animal", "dog"]),
        # Roboflow: a root of several classes, of one, of one with the same name; and no root
        ([(0, "pets", "none"), (1, "dog", "pets"), (2, "cat", "pets")], ["dog", "cat"]),
        ([(0, "dogs", "none"), (1, "dog", "dogs")], ["dog"]),
        ([(0, "dog", "none"), (1, "dog", "dog")], ["dog"]),
        ([(0, "dog", "none")], ["dog"]),
        ([(0, "dog", "none"), (1, "cat", "none")], ["dog", "cat"]),
        ([(0, "dog", "dog")], ["dog"]),
    ],
)
def test_only_roboflows_root_is_skipped(tmp_path, categories, names):
    listed = [{"id": i, "name": name, "supercategory": parent} for i, name, parent in categories]
    for used in (None, listed[-1]["id"]):  # a split without boxes has the classes of the others
        boxes = [] if used is None else [{"id": 1, "image_id": 3, "category_id": used, "bbox": [1, 1, 5, 5]}]
        root = write(tmp_path, changed(categories=listed, annotations=boxes))
        assert list(load_dataset(root).categories.names) == names


def box_of(**fields):
    """CONTENT with one annotation that has these fields."""
    return changed(annotations=[{"id": 1, "image_id": 3, "category_id": 1, "bbox": [1, 1, 2, 2], **fields}])


BAD_BOXES = [
    "null", "[]", "[1, 2, 3]", "[1, 2, 3, 4, 5]", '["1", "2", "3", "4"]', "[null, null, null, null]", "{}",
    '"1 2 3 4"', "7", "[[1, 2, 3, 4]]", "[true, true, true, true]", f"[{10**399}, 1, 2, 2]",
    f"[1, 1, 2, -{'9' * 5000}]", "[1e999, 1, 2, 2]", "[1, 1, Infinity, 2]",
    "[NaN, 1, 2, 2]", "[1e300, 1, 1e300, 2]", "[-Infinity, 1, Infinity, 2]",
    "[1, 1, 0, 2]", "[1, 1, -5, 2]",
]  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", BAD_BOXES, ids=lambda bad: bad[:30])
def test_an_invalid_box_is_counted_and_skipped(tmp_path, bad):
    good = {"id": 2, "image_id": 3, "category_id": 18, "bbox": [1, 2, 10, 20], "area": 150, "iscrowd": 1}
    bad_one = {"id": 1, "image_id": 3, "category_id": 1, "bbox": "BAD"}
    root = write(tmp_path, changed(annotations=[bad_one, good]))
    file = root / "annotations" / "instances_train2017.json"
    file.write_text(file.read_text().replace('"BAD"', bad))
    data = load_dataset(root)
    assert data.records[1].boxes.tolist() == [[1, 2, 11, 22]]
    assert (data.records[1].labels.tolist(), data.records[1].areas.tolist()) == ([1], [150])
    assert data.records[1].ignore.tolist() == [True]
    assert list(data.report.faults.values()) == [1]
    assert len(str(data.report)) < 1000
    with pytest.raises(DataError, match=r"instances_train2017\.json, .*box"):
        load_dataset(root, strict=True)


@pytest.mark.parametrize("area", ["big", "", [], -1, 1e39, float("nan"), 10**400, True])
def test_an_invalid_area_is_counted_and_replaced_by_the_boxs(tmp_path, area):
    data = load_dataset(write(tmp_path, box_of(area=area)))
    assert data.records[1].areas.tolist() == [4]
    assert data.report.faults == {"area that is not a number of pixels, replaced by the box's": 1}


@pytest.mark.parametrize(
    ("flag", "expected", "faults"),
    [
        *((flag, False, 0) for flag in (0, 0.0, False, None, "0", "0.0", "false", "False", "no", "", "None")),
        *((flag, True, 0) for flag in (1, 1.0, True, "1", "true", "Yes")),
        *((flag, False, 1) for flag in (2, -1, "2", "crowd", [1], {}, float("nan"), 10**300)),
    ],
)
def test_spellings_of_iscrowd(tmp_path, flag, expected, faults):
    data = load_dataset(write(tmp_path, box_of(iscrowd=flag)))
    assert data.records[1].ignore.tolist() == [expected]
    assert sum(data.report.faults.values()) == faults


TWICE = [{"id": 1, "name": "a"}, {"id": 2, "name": "a"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(images=[]), "lists no images; add some"),
        ({"images": [], "annotations": []}, "has no list 'categories'; a COCO file has images"),
        (changed(images=CONTENT["images"] * 2), "image id 7 occurs more than once"),
        (changed(annotations=CONTENT["annotations"] * 2), "annotation id 1 occurs more than once"),
        (box_of(image_id=4), "annotation 1 is for image 4, which is not listed"),
        (box_of(category_id=2), "have the category id 2, which is not listed"),
        (changed(images=[{"id": 1, "file_name": "a.jpg"}], annotations=[]), "image 1 has no 'width'; add it"),
        (box_of(image_id=[7]), r"annotation 1 is for image \[7\], which is not listed"),
        (changed(annotations=[5]), "annotations contains 5; expected only objects"),
        *(
            (
                changed(images=[{**CONTENT["images"][0], "width": width}]),
                "has width .*; expected a number",
            )
            for width in ("wide", 0, -5, float("inf"), float("nan"), 10**400, [], None)
        ),
        (
            changed(images=[{**CONTENT["images"][0], "width": 2**17, "height": 2**17}], annotations=[]),
            "a.jpg has 131072x131072 pixels, more than 178956970; raise max_pixels",
        ),
        (
            changed(categories=[{"id": "5", "name": "a"}]),
            "category 5 has id '5'; expected an integer",
        ),
        (changed(categories=TWICE, annotations=[]), "the name 'a' occurs more than once"),
    ],
)
def test_mistakes_are_reported(tmp_path, content, message):
    path = tmp_path / "annotations" / "train.json"
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    (tmp_path / "train").mkdir()
    for name in ("a.jpg", "b.jpg", "empty.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / "train" / name)
    with pytest.raises(DataError, match=message) as error:
        load_coco(tmp_path, "train")
    assert str(path) in str(error.value)


def test_missing_splits_and_images(tmp_path):
    write(tmp_path)
    write(tmp_path, file="annotations/instances_val2017.json", images="val2017")
    with pytest.raises(DataError, match="unknown split test; this dataset has train2017, val2017"):
        load_coco(tmp_path, "test")
    with pytest.raises(DataError, match="has several splits; choose one of train2017, val2017"):
        load_coco(tmp_path)
    (tmp_path / "train2017" / "b.jpg").unlink()
    with pytest.raises(
        DataError, match=r"1 of 3 images are not in .*train2017, the first is 'b\.jpg'; add them"
    ):
        load_coco(tmp_path, "train2017")
    (tmp_path / "val2017" / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"its first image 'a\.jpg' is in none of"):
        load_coco(tmp_path, "val2017")
    (tmp_path / "annotations" / "instances_val2017.json").write_text("{")
    with pytest.raises(DataError, match="is not valid JSON"):
        load_coco(tmp_path, "val2017")


def test_strict_rejects_clipped_boxes(tmp_path):
    with pytest.raises(DataError, match=r"instances_train2017\.json, b\.jpg: box partly outside the image"):
        load_dataset(write(tmp_path), strict=True)
