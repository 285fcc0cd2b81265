"""Conversion between dataset formats: what is read back is what was there, or a line says what is not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO

from fcos_fast.data import (
    Categories,
    DataError,
    DetectionDataset,
    convert,
    dataset_splits,
    exact,
    load_dataset,
)
from fcos_fast.data.conversion import common_categories

from .conftest import to_xml
from .writers import write_coco, write_yolo

FORMATS = ("coco", "voc", "yolo")
TURNED = 6  # EXIF's orientation: the file has 40x30 pixels, the image is 30x40


@pytest.fixture(scope="module")
def hard(tmp_path_factory) -> Path:
    """A COCO dataset of two splits with hard cases: fractions of pixels, boxes along every edge, equal stems in
    subfolders, a rotated image, accents, spaces at the ends of a stem, an image without boxes, a crowd, hidden images,
    ids with gaps."""
    root = tmp_path_factory.mktemp("hard")
    rng = np.random.default_rng(0)
    (root / "annotations").mkdir()
    for split, start in (("train2017", 100), ("val2017", 500)):
        images, annotations = [], []
        names = (
            "a/x.png",
            "b/x.jpg",
            "b/cafe\u0301 1.jpg",
            "turned.jpg",
            ".empty.jpg",
            "b/images/größe.jpg",
            " .x .jpg",
            "turned .jpg",
        )
        for i, name in enumerate(names):
            file = root / split / name
            file.parent.mkdir(parents=True, exist_ok=True)
            exif = Image.Exif()
            exif[0x0112] = TURNED if name == "turned.jpg" else 1
            Image.new("RGB", (41, 30), tuple(rng.integers(256, size=3).tolist())).save(file, exif=exif)
            width, height = (30, 41) if name == "turned.jpg" else (41, 30)
            images.append({"id": start + 7 * i, "file_name": name, "width": width, "height": height})
            if name == ".empty.jpg":
                continue
            boxes = [
                [0, 0, width, height],
                [1.1, 2.2, 3.3, 4.4],
                [0, 5, 0.7, 0.3],
                [width - 1 / 3, 1, 1 / 3, 2],
            ]
            corners, sides = rng.random((20, 2)) * 20, rng.random((20, 2)) * 9 + 0.01
            boxes += np.concatenate((corners, sides), axis=1).tolist()
            for box in boxes:
                number = 3 * len(annotations) + start
                annotations.append(
                    {
                        "id": number,
                        "image_id": images[-1]["id"],
                        "category_id": (4, 17, 90)[number % 3 - 1],
                        "bbox": box,
                        "area": round(0.7 * box[2] * box[3], 2),
                        "iscrowd": int(number % 5 == 0),
                    }
                )
        categories = [{"id": 90, "name": "no"}, {"id": 17, "name": "Käfer"}, {"id": 4, "name": "a b"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def loaded(root: Path) -> dict[str, DetectionDataset]:
    return {split: load_dataset(root, split or None) for split in dataset_splits(root) or [""]}


def contents(dataset: DetectionDataset, kept: bool = True) -> dict[bytes, tuple]:
    """The bytes of each image file -> its boxes, classes and flags, without their order."""
    found = {}
    for record in dataset.records:
        names = [dataset.categories.names[label] for label in record.labels.tolist()]
        rows = zip(record.boxes.tolist(), names, record.ignore.tolist(), strict=True)
        key = record.image.read_bytes()
        assert key not in found
        found[key] = (record.size, sorted(row for row in rows if kept or not row[2]))
    return found


@pytest.mark.parametrize("second", FORMATS)
@pytest.mark.parametrize("first", FORMATS)
def test_two_conversions_change_nothing(hard, tmp_path, first, second):
    origin = loaded(hard)
    convert(origin, first, tmp_path / "first")
    convert(loaded(tmp_path / "first"), second, tmp_path / "second")
    there = loaded(tmp_path / "second")
    names = ("train", "val") if "yolo" in (first, second) else ("train2017", "val2017")
    assert set(there) == set(names)
    for (before, old), after in zip(origin.items(), names, strict=True):
        new = there[after]
        assert new.report.faults == {}, before
        # YOLO cannot mark crowds, so they are omitted.
        assert contents(new) == contents(old, kept="yolo" not in (first, second))


def test_coco_files_keep_ids_and_areas(hard, tmp_path):
    assert convert(loaded(hard), "coco", tmp_path / "out") == [
        "6 images renamed: readers skip hidden names, and lists do not keep all characters",
        "2 images renamed, so that their names differ",
    ]
    for split in ("train2017", "val2017"):
        old = COCO(hard / "annotations" / f"instances_{split}.json")
        new = COCO(tmp_path / "out" / "annotations" / f"instances_{split}.json")
        assert {i: c["name"] for i, c in new.cats.items()} == {i: c["name"] for i, c in old.cats.items()}
        assert new.imgs.keys() == old.imgs.keys()
        for i in old.imgs:
            mine, theirs = (sorted(c.imgToAnns[i], key=lambda a: a["id"]) for c in (new, old))
            for name in ("category_id", "iscrowd", "area"):
                assert [a[name] for a in mine] == [a[name] for a in theirs]
            assert np.allclose([a["bbox"] for a in mine], [a["bbox"] for a in theirs], atol=1e-5, rtol=0)
        first = next(iter(new.imgToAnns[next(iter(new.imgs))]))
        second = new.imgToAnns[first["image_id"]][1]
        assert second["bbox"] == [1.1, 2.2, 3.3, 4.4]  # as short as it was


def test_voc_files(hard, tmp_path):
    lines = convert(loaded(hard), "voc", tmp_path / "out")
    boxes = sum(len(dataset.records.boxes) for dataset in loaded(hard).values())
    assert boxes == 336
    assert any("category ids not kept" in line for line in lines)
    assert "10 images renamed: VOC has one folder for all, and an XML file per stem" in lines
    stems = sorted(path.stem for path in (tmp_path / "out" / "Annotations").iterdir())
    assert len(stems) == len(set(stems)) == 16
    assert {"x", "b_x"} <= {stem.removeprefix("train2017_") for stem in stems}
    tree = ElementTree.parse(tmp_path / "out" / "Annotations" / "x.xml")
    assert [float(e.text) for e in tree.find("object/bndbox")] == [0, 0, 41, 30]
    assert tree.findtext("object/bndbox/xmax") == "41"  # an integer, for tools that read nothing else
    assert [float(e.text) for e in tree.findall("object")[1].find("bndbox")] == [1.1, 2.2, 4.4, 6.6]
    assert any("fractions of pixels" in line for line in lines)


def test_yolo_files(hard, tmp_path):
    lines = convert(loaded(hard), "yolo", tmp_path / "out")
    crowds = sum(int(dataset.records.ignore.sum()) for dataset in loaded(hard).values())
    assert f"{crowds} difficult or crowd boxes omitted: YOLO cannot mark them" in lines
    content = yaml.safe_load((tmp_path / "out" / "data.yaml").read_text())
    assert content["names"] == {0: "a b", 1: "Käfer", 2: "no"}
    label = tmp_path / "out" / "labels" / "train" / "turned.txt"
    rows = [list(map(float, line.split())) for line in label.read_text().splitlines()]
    widths = [row[3] * 30 for row in rows]  # of the upright image
    assert max(widths) == 30
    empty = [path for path in (tmp_path / "out" / "labels").rglob("*.txt") if not path.read_bytes()]
    assert [path.name for path in empty] == ["_empty.txt", "_empty.txt"]


def test_boxes_of_whole_pixels_are_short(tmp_path, make_voc):
    root = make_voc({"a": [("cat", (1, 2, 30, 20)), ("cat", (0, 0, 40, 30))]})
    assert convert(loaded(root), "yolo", tmp_path / "yolo") == []
    text = (tmp_path / "yolo" / "labels" / "train" / "a.txt").read_text()
    assert text == "0 0.3875 0.36666667 0.725 0.6\n0 0.5 0.5 1 1\n"
    assert convert(loaded(root), "coco", tmp_path / "coco") == []
    content = json.loads((tmp_path / "coco" / "annotations" / "instances_all.json").read_text())
    assert [a["bbox"] for a in content["annotations"]] == [[1, 2, 29, 18], [0, 0, 40, 30]]


@pytest.mark.parametrize("whole", [True, False])
def test_fractions_of_a_yolo_file_hold_boxes(whole):
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 5000, 20_000)
    start = rng.random(20_000) * lengths * (rng.random(20_000) < 0.8)  # every fifth box begins at the edge
    end = start + rng.random(20_000) * (lengths - start)
    starts, ends = (f(x).astype(np.float32) for f, x in ((np.floor, start), (np.ceil, end)))
    if not whole:
        starts, ends = start.astype(np.float32), np.minimum(end.astype(np.float32), lengths)
    numbers = exact.relative(starts, ends, lengths).tolist()
    texts = [(exact.text(center), exact.text(side)) for center, side in numbers]
    for (center, side), low, high, length in zip(texts, starts, ends, lengths.tolist(), strict=True):
        assert np.float32(max(0, (float(center) - float(side) / 2) * length)) == low
        assert np.float32(min(length, (float(center) + float(side) / 2) * length)) == high
    assert max(len(text) for pair in texts for text in pair) <= (14 if whole else 20)


def test_difficult_is_a_crowd(tmp_path, make_voc):
    root = make_voc({"a": [("cat", (1, 2, 30, 20)), ("cat", (3, 2, 30, 20))]})
    file = root / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace("<name>", "<difficult>1</difficult><name>", 1))
    convert(loaded(root), "coco", tmp_path / "coco")
    assert load_dataset(tmp_path / "coco").records[0].ignore.tolist() == [True, False]
    convert(loaded(tmp_path / "coco"), "voc", tmp_path / "voc")
    assert load_dataset(tmp_path / "voc").records[0].ignore.tolist() == [True, False]


@pytest.mark.parametrize(("how", "links"), [("hardlink", 2), ("symlink", 1), ("copy", 1)])
def test_image_files(tmp_path, make_voc, how, links):
    root = make_voc({"a": [("cat", (1, 2, 30, 20))]})
    link = root / "JPEGImages" / "b.jpg"
    link.symlink_to("a.jpg")
    (root / "Annotations" / "b.xml").write_text(to_xml([]))
    convert(loaded(root), "yolo", tmp_path / "out", how)
    for name in ("a.jpg", "b.jpg"):
        made = tmp_path / "out" / "images" / "train" / name
        assert made.read_bytes() == link.read_bytes()
        assert made.is_symlink() == (how == "symlink")
    assert made.stat(follow_symlinks=False).st_nlink == links + (how == "hardlink")


def test_another_file_system(tmp_path, make_voc, monkeypatch):
    root = make_voc({"a": [("cat", (1, 2, 30, 20))]})

    def fail(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(DataError, match=r"Invalid cross-device link.*give --images copy or symlink"):
        convert(loaded(root), "yolo", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pets"]  # nothing half-written


def test_an_existing_folder_is_not_changed(tmp_path, make_voc):
    root = make_voc({"a": [("cat", (1, 2, 30, 20))]})
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    with pytest.raises(DataError, match=r"out: already exists; remove it or choose another folder"):
        convert(loaded(root), "yolo", tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["file"]


def test_size_that_is_not_the_images(tmp_path):
    write_coco(tmp_path / "coco", images=[{"id": 0, "file_name": "a.jpg", "width": 30, "height": 40}])
    (tmp_path / "coco" / "images").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "coco" / "images" / "a.jpg")
    with pytest.raises(
        DataError, match=r"a\.jpg: has 40x30 pixels \(upright\), but its annotation states 30x40"
    ):
        convert(loaded(tmp_path / "coco"), "yolo", tmp_path / "out")


def test_one_image_in_two_splits(tmp_path, make_voc):
    root = make_voc({"a": [("cat", (1, 2, 30, 20))], "b": []}, some=["a"], train=["a", "b"])
    convert(loaded(root), "voc", tmp_path / "voc")
    assert {s: len(d) for s, d in loaded(tmp_path / "voc").items()} == {"some": 1, "train": 2}
    convert(loaded(root), "coco", tmp_path / "coco")
    assert {s: len(d) for s, d in loaded(tmp_path / "coco").items()} == {"some": 1, "train": 2}
    different = loaded(root)
    different["train"].records.boxes[:] += 1
    with pytest.raises(
        DataError, match=r"a\.jpg: split train has other boxes for this image than another split"
    ):
        convert(different, "voc", tmp_path / "out")


def test_one_image_in_two_entries_of_a_coco_file(tmp_path):
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [1 + i, 2, 10, 9]} for i in range(2)]
    write_coco(tmp_path / "coco", ("a.jpg", "a.jpg"), annotations=boxes)
    (tmp_path / "coco" / "images").mkdir()
    Image.new("RGB", (40, 30)).save(tmp_path / "coco" / "images" / "a.jpg")
    with pytest.raises(
        DataError, match=r"a\.jpg: split train lists this image twice with different boxes; merge"
    ):
        convert(loaded(tmp_path / "coco"), "voc", tmp_path / "out")
    assert convert(loaded(tmp_path / "coco"), "yolo", tmp_path / "yolo")[0].startswith("1 images renamed")
    boxes = [record.boxes.tolist() for record in load_dataset(tmp_path / "yolo").records]
    assert boxes == [[[1, 2, 11, 11]], [[2, 2, 12, 11]]]


def test_class_ids_that_differ_between_splits(tmp_path, make_voc):
    root = tmp_path / "coco"
    for split, number in (("train", 1), ("val", 2)):
        category = {"id": number, "name": "cat"}
        box = {"id": 0, "image_id": 0, "category_id": number, "bbox": [1, 2, 10, 9]}
        file = f"annotations/{split}.json"
        write_coco(root, file=file, annotations=[box], categories=[category])
        (root / split).mkdir()
        Image.new("RGB", (40, 30)).save(root / split / "a.jpg")
    lines = convert(loaded(root), "coco", tmp_path / "out")
    assert lines == ["1 class ids not kept: the splits number the classes differently"]
    cat, dog = ("cat", (1, 2, 30, 20)), ("dog", (1, 2, 30, 20))
    voc = make_voc({"a": [cat, dog], "b": [dog]}, train=["a"], val=["b"])  # has no ids
    assert convert(loaded(voc), "coco", tmp_path / "voc") == []


def test_splits_without_a_name_in_yolo(tmp_path, make_voc):
    root = make_voc({"a": [("cat", (1, 2, 30, 20))], "b": [("cat", (1, 2, 3, 4))]}, fold1=["a"], fold2=["b"])
    with pytest.raises(DataError, match="split fold1: a YOLO dataset has one each of train, val, test"):
        convert(loaded(root), "yolo", tmp_path / "out")
    convert({"fold2": load_dataset(root, "fold2")}, "yolo", tmp_path / "out")
    assert [r.name for r in load_dataset(tmp_path / "out", "train").records] == ["b.jpg"]


def test_class_name_that_xml_does_not_keep(tmp_path):
    root = write_yolo(tmp_path / "yolo", names=["cat "])
    with pytest.raises(DataError, match="class 'cat ': XML does not keep this name; rename the class"):
        convert(loaded(root), "voc", tmp_path / "out")


def test_classes_of_splits():
    a, b = Categories(("dog", "cat"), (18, 17)), Categories(("cat", "ant"), (17, 16))
    assert common_categories([a, b]) == Categories(("ant", "cat", "dog"), (16, 17, 18))
    assert common_categories([a, a]) == a
    assert common_categories([Categories(("b",)), Categories(("a",))]) == Categories(("a", "b"))


def test_pascals_lists_of_one_class_are_no_splits(make_voc):
    images = {"a": [("cat", (1, 2, 30, 20))], "b": []}
    root = make_voc(images, train=["a"], val=["b"], trainval=["a", "b"], cat_train=["a  1", "b -1"])
    assert dataset_splits(root) == ["train", "val"]


@pytest.mark.parametrize("to", FORMATS)
def test_bccd(bccd, tmp_path, to):
    origin = loaded(bccd)
    convert(origin, to, tmp_path / "out", "symlink")
    there = loaded(tmp_path / "out")
    assert {name: len(dataset) for name, dataset in there.items()} == {"train": 205, "val": 87, "test": 72}
    for name, dataset in there.items():
        assert dataset.report.faults == {}
        assert contents(dataset) == contents(origin[name])
