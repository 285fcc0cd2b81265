"""Paths in a dataset's files: none leads outside the dataset unless that is allowed."""

from __future__ import annotations

import os

import pytest

from fcos_fast.data import DataError, load_coco, load_dataset
from tests.data.writers import ROW, save, write_coco, write_yolo


@pytest.fixture
def secret(tmp_path):
    save(tmp_path / "secret.jpg")
    (tmp_path / "secret.txt").write_text(ROW)
    return tmp_path / "secret.jpg"


def forms(secret, root):
    relative = os.path.relpath(secret, root)
    return [str(secret), relative, relative.replace("/", "\\"), f"x/../{relative}"]


REJECTED = r"leads outside the dataset folder .*set; correct the path, or give --data\.allow_outside true"


def test_coco_names_outside_are_rejected_unless_allowed(tmp_path, secret):
    root = tmp_path / "set"
    save(root / "train" / "a.jpg")
    for name in forms(secret, root / "train"):
        for names in ([name], ["a.jpg", name]):
            write_coco(root, names)
            with pytest.raises(DataError, match=rf"train\.json: .*{REJECTED}"):
                load_dataset(root)
            data = load_dataset(root, allow_outside=True)
            assert data.records[-1].image.samefile(secret)


def test_yolo_lines_outside_are_rejected_unless_allowed(tmp_path, secret):
    root = write_yolo(tmp_path / "set", train="train.txt")
    for line in forms(secret, root):
        (root / "train.txt").write_text(line)
        with pytest.raises(DataError, match=rf"train\.txt: .*{REJECTED}"):
            load_dataset(root)
        assert load_dataset(root, allow_outside=True).records[0].image.samefile(secret)


def test_yolo_folders_outside_are_rejected_unless_allowed(tmp_path):
    write_yolo(tmp_path / "other")
    for train in (str(tmp_path / "other/images/train"), "../other/images/train", "..\\other\\images\\train"):
        root = write_yolo(tmp_path / "set", [], train=train)
        with pytest.raises(DataError, match=rf"data\.yaml: .*{REJECTED}"):
            load_dataset(root)
        assert len(load_dataset(root, allow_outside=True)) == 1
    root = write_yolo(tmp_path / "set", [], path=str(tmp_path / "other"))
    with pytest.raises(DataError, match=REJECTED):
        load_dataset(root)
    assert len(load_dataset(root, allow_outside=True)) == 1


def test_roboflows_paths_are_inside(tmp_path):
    """``../train/images`` is beside the data.yaml, even if that path exists outside."""
    write_yolo(tmp_path, ["train/images/outside.jpg"])
    root = write_yolo(tmp_path / "set", ["train/images/inside.jpg"], train="../train/images")
    assert [record.name for record in load_dataset(root).records] == ["inside.jpg"]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a\0.jpg", "a" * 5000 + ".jpg", "~", "~nobody/x.jpg", "/", "\\"]
)
def test_invalid_file_names(tmp_path, name):
    save(tmp_path / "set" / "train" / "a.jpg")
    for names in ([name], ["a.jpg", name]):
        write_coco(tmp_path / "set", names)
        with pytest.raises(DataError, match=r"/set(/annotations/train\.json|/train)?: ") as error:
            load_coco(tmp_path / "set")
        assert len(str(error.value)) < 2000
