"""``fcos-fast data convert``: what it writes, prints and rejects. Contents: ``tests/data/test_conversion.py``."""

from __future__ import annotations

import shutil

import pytest

from fcos_fast.cli.main import main
from fcos_fast.data import dataset_splits, load_dataset


def convert(root, output, *options) -> int:
    return main(["data", "convert", "--data.root", str(root), "--output", str(output), *options])


@pytest.mark.parametrize("kind", ["voc", "coco", "yolo"])
def test_all_splits_or_one(voc_root, tmp_path, capsys, kind):
    assert convert(voc_root, tmp_path / "all", "--to", kind) == 0
    assert sorted(dataset_splits(tmp_path / "all")) == ["train", "val"]
    assert [len(load_dataset(tmp_path / "all", name)) for name in ("train", "val")] == [10, 2]
    assert f"all: {kind.upper()}, train, val" in capsys.readouterr().out
    assert convert(voc_root, tmp_path / "one", "--to", kind, "--data.split", "val", "--images", "copy") == 0
    assert dataset_splits(tmp_path / "one") == ["val"]


def test_images_in_no_split_are_reported(voc_root, tmp_path, capsys):
    root = tmp_path / "voc"
    shutil.copytree(voc_root, root)
    lists = root / "ImageSets" / "Main"
    lines = (lists / "train.txt").read_text().splitlines()
    (lists / "train.txt").write_text("\n".join(lines[3:]))
    omitted = "3 images omitted, which are in no split; add them to a list in ImageSets/Main\n"
    assert convert(root, tmp_path / "all", "--to", "coco") == 0
    assert omitted in capsys.readouterr().out
    for options in (["--data.split", "val"], ["--data.root", str(voc_root)]):
        assert convert(root, tmp_path / options[0][7:], "--to", "coco", *options) == 0
        assert "omitted" not in capsys.readouterr().out


def test_errors_are_one_line(voc_root, tmp_path, capsys):
    out = ["--output", str(tmp_path / "out")]
    for options, message in (
        (["--to", "yolo"], "already exists; remove it or choose another folder"),
        (["--to", "yoloo"], "--to cannot be 'yoloo'; did you mean 'yolo'?"),
        (["--to", "yolo", "--images", "move"], "--images cannot be 'move'; choices: hardlink, symlink, copy"),
        ([], "missing options: --to"),
        (["--to", "yolo", "--data.root", ""], "no dataset; give its folder with --data.root"),
        ([*out, "--to", "yolo", "--data.split", "x"], "x.txt: unknown split; this dataset has train, val"),
    ):
        assert convert(voc_root, voc_root, *options) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
