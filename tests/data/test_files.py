"""Leftovers of operating systems, hidden and linked folders, and the folders that exporters write."""

from __future__ import annotations

import shutil

import pytest

from fcos_fast.data import DataError, load_coco, load_dataset, load_voc, load_yolo
from tests.data.writers import CAT, save, write_coco, write_yolo

LEFTOVERS = ["._a.jpg", ".hidden.jpg", ".ipynb_checkpoints/a-checkpoint.jpg", "__MACOSX/a.jpg"]
LEFTOVERS += [".trash/old.jpg", "@eaDir/a.jpg", "__MACOSX/deep/._a.jpg", ".git/a.jpg"]


def add_leftovers(folder):
    for name in LEFTOVERS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\0\5\x16\7 no image")


def test_leftovers_are_not_read_as_images(make_voc, tmp_path):
    voc = make_voc({"a": [CAT]}, train=["a", "._a"])
    add_leftovers(voc / "JPEGImages")
    for name in ("Annotations/._a.xml", "ImageSets/Main/._train.txt", "Annotations/.b.xml"):
        (voc / name).write_bytes(b"\0\5\x16\7")
    yolo = write_yolo(tmp_path / "yolo")
    add_leftovers(yolo / "images" / "train")
    (yolo / "._data.yaml").write_bytes(b"\0\5\x16\7")
    (yolo / "labels" / "train" / "._a.txt").write_bytes(b"\0\5\x16\7")
    coco = write_coco(tmp_path / "coco", ["a.jpg", "._a.jpg", "__MACOSX/._b.jpg"])
    save(coco / "train" / "a.jpg")
    add_leftovers(coco / "train")
    (coco / "annotations" / "._train.json").write_bytes(b"\0\5\x16\7")
    for root in (voc, yolo, coco):
        for split in (None, "train"):
            data = load_dataset(root, split)
            assert [record.name for record in data.records] == ["a.jpg"]
            skipped = {"file that the system left behind, skipped"}
            assert set(data.report.faults) == (skipped if root == coco or (root == voc and split) else set())


def test_hidden_folders_are_not_splits(make_voc, tmp_path):
    made = make_voc({"a": [CAT]})
    for name in ("train", ".trash", "__MACOSX", ".ipynb_checkpoints"):
        write_coco(tmp_path / "coco", file=f"{name}/_annotations.coco.json")
        save(tmp_path / "coco" / name / "a.jpg")
        shutil.copytree(made / "JPEGImages", tmp_path / "voc" / name)
        shutil.copytree(made / "Annotations", tmp_path / "voc" / name, dirs_exist_ok=True)
    for root in ("coco", "voc"):
        assert [record.name for record in load_dataset(tmp_path / root).records] == ["a.jpg"]


def test_data_in_a_hidden_folder_is_read(tmp_path):
    root = write_yolo(tmp_path / ".cache" / "__MACOSX")
    assert len(load_dataset(root)) == 1


def test_leftovers_in_a_list_are_skipped_and_counted(tmp_path):
    root = write_yolo(tmp_path, train="train.txt")
    (root / "train.txt").write_text("images/train/._a.jpg\n__MACOSX/images/train/a.jpg\nimages/train/a.jpg\n")
    data = load_yolo(root)
    assert [record.name for record in data.records] == ["a.jpg"]
    assert data.report.faults == {"file that the system left behind, skipped": 2}


def test_linked_folders_and_cycles(tmp_path):
    root = write_yolo(tmp_path / "elsewhere")
    home = tmp_path / "set"
    (home / "images" / "train").mkdir(parents=True)
    (home / "images" / "train" / "more").symlink_to(root / "images" / "train")
    (home / "images" / "train" / "circle").symlink_to(home / "images")
    (home / "labels" / "train").mkdir(parents=True)
    (home / "labels" / "train" / "more").symlink_to(root / "labels" / "train")
    shutil.copy(root / "data.yaml", home)
    assert [len(record.boxes) for record in load_dataset(home).records] == [1]
    (tmp_path / "linked").symlink_to(home)
    assert len(load_dataset(tmp_path / "linked")) == 1


def test_folders_that_link_to_each_other(tmp_path):
    root = write_yolo(tmp_path)
    for i in range(8):
        (root / f"images/train/{i}").mkdir()
    for i in range(8):
        for j in range(8):
            (root / f"images/train/{i}/{j}").symlink_to(root / f"images/train/{j}")
    assert len(load_dataset(root)) == 1
    (root / "images" / "train" / "self.jpg").symlink_to("self.jpg")
    with pytest.raises(DataError, match=r"self\.jpg: cannot be read"):
        load_dataset(root)


def test_home_folder_and_path_of_a_file(make_voc, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    make_voc({"a": [CAT]})
    assert len(load_dataset("~/pets")) == len(load_voc("~/pets")) == 1
    write_yolo(tmp_path / "yolo", path="~/yolo")
    for root in ("~/yolo", "~/yolo/data.yaml", tmp_path / "yolo" / "data.yaml"):
        assert len(load_dataset(root, "train")) == len(load_yolo(root)) == 1
    write_coco(tmp_path / "coco")
    save(tmp_path / "coco" / "train" / "a.jpg")
    for root in ("~/coco", "~/coco/annotations/train.json"):
        assert len(load_dataset(root, "train")) == len(load_coco(root)) == 1
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(DataError, match=r"notes\.txt: is not the folder, data\.yaml or JSON file"):
        load_dataset("~/notes.txt")


@pytest.mark.parametrize(
    ("images", "annotations", "split"),
    [
        ("images", "annotations", None),
        ("Images", "Annotations", None),
        ("JPEGImages", "annotations", None),
        ("images/train", "annotations/train", "train"),
        (".", ".", None),
        ("train", "train", "train"),
        ("valid", "valid", "val"),
    ],
)
def test_loose_voc(make_voc, tmp_path, images, annotations, split):
    made = make_voc({"a": [CAT], "b": [CAT]})
    root = tmp_path / "loose"
    shutil.copytree(made / "JPEGImages", root / images)
    shutil.copytree(made / "Annotations", root / annotations, dirs_exist_ok=True)
    data = load_dataset(root, split)
    assert [record.name for record in data.records] == ["a.jpg", "b.jpg"]
    assert [len(record.boxes) for record in data.records] == [1, 1]
    with pytest.raises(DataError, match=r"use all images with an empty name|unknown split; this dataset has"):
        load_dataset(root, "no split")


def test_loose_voc_of_several_splits(make_voc, tmp_path):
    made = make_voc({"a": [CAT]})
    for split in ("train", "valid"):
        shutil.copytree(made / "JPEGImages", tmp_path / "roboflow" / split)
        shutil.copytree(made / "Annotations", tmp_path / "roboflow" / split, dirs_exist_ok=True)
    assert len(load_dataset(tmp_path / "roboflow", "train")) == 1
    with pytest.raises(DataError, match="several splits; choose one of train, valid"):
        load_dataset(tmp_path / "roboflow")


@pytest.mark.parametrize(
    ("file", "name", "image"),
    [
        ("result.json", "images/a.jpg", "images/a.jpg"),
        ("result.json", "images\\a.jpg", "images/a.jpg"),  # exported on Windows
        ("result.json", "a.jpg", "images/a.jpg"),
        ("labels.json", "a.jpg", "data/a.jpg"),  # FiftyOne
        ("coco.json", "a.jpg", "a.jpg"),
        ("annotations/train.json", "train\\a.jpg", "images/train/a.jpg"),
        ("annotations/train.json", ".\\a.jpg", "train/a.jpg"),
        ("annotations/train.json", "../images/a.jpg", "images/a.jpg"),
        ("annotations/train.json", "a.jpg", "train/a.JPG"),
        ("annotations/train.json", "a.JPEG", "train/a.jpeg"),
        ("annotations/train.json", "cafe\u0301.jpg", "train/caf\u00e9.jpg"),
        ("annotations/train.json", "a.jfif", "train/a.jfif"),
        ("annotations/train.JSON", "a.jpg", "train/a.jpg"),
    ],
)
def test_coco_files_and_names_of_exporters(tmp_path, file, name, image):
    root = write_coco(tmp_path, [name], file)
    save(root / image)
    (root / "notes.json").write_text('{"info": "of another kind"}')
    data = load_dataset(root)
    assert data.records[0].image == root / image
    assert data[0][0].shape == (3, 30, 40)


@pytest.mark.parametrize(
    ("line", "image"),
    [
        ("images\\train\\a.jpg", "images/train/a.jpg"),
        (".\\images\\train\\a.jpg", "images/train/a.jpg"),
        ("images/train/a.jpg", "images/train/a.JPG"),
        ("images/train/a.JPG", "images/train/a.jpg"),
    ],
)
def test_spellings_in_yolo_lists(tmp_path, line, image):
    root = write_yolo(tmp_path, [image], train="train.txt")
    (root / "train.txt").write_text(line)
    assert load_yolo(root).records[0].image == root / image


def test_yolo_with_backslashes_and_upper_case_suffixes(tmp_path):
    root = write_yolo(tmp_path, train="images\\train")
    (root / "labels" / "train" / "a.txt").rename(root / "labels" / "train" / "a.TXT")
    (root / "data.yaml").rename(root / "data.YAML")
    assert len(load_dataset(root, "train").records[0].boxes) == 1


def test_spellings_in_voc_lists(make_voc):
    root = make_voc({"a": [CAT], "b 1": [CAT], "c.d": [CAT], "e": [CAT], "f 1": [CAT]})
    (root / "Annotations" / "a.xml").rename(root / "Annotations" / "a.XML")
    save(root / "JPEGImages" / "e.jfif")
    (root / "JPEGImages" / "e.jpg").unlink()
    lines = ["a.jpg", "b 1  1", "c.d -1", "e.jfif  0", "f 1", "a", "JPEGImages\\a.jpg", "./JPEGImages/a.JPG"]
    (root / "ImageSets" / "Main" / "cat_train.txt").write_text("\n".join(lines))
    names = [record.name for record in load_voc(root, "cat_train").records]
    assert names == ["a.jpg", "b 1.jpg", "c.d.jpg", "e.jfif", "f 1.jpg"]
    (root / "ImageSets" / "Main" / "train.txt").write_text("g 1\n")
    with pytest.raises(DataError, match="image g .* is missing"):
        load_voc(root, "train")
