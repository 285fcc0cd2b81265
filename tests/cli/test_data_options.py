"""Datasets and images on the command line: skipped files, one-line errors, and options that allow more."""

from __future__ import annotations

import json
import os
import shutil

import pytest
from PIL import Image

from fcos_fast.cli.main import main


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def copied(voc_root, tmp_path):
    """A copy of the dataset that tests may change."""
    return shutil.copytree(voc_root, tmp_path / "set")


def error_of(arguments, capsys) -> str:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    return error


@pytest.mark.timeout(60)
def test_detect_in_a_folder_that_contains_other_files(tmp_path, voc_root, checkpoint, capsys):
    folder = tmp_path / "photos"
    (folder / ".trash").mkdir(parents=True)
    (folder / "folder.jpg").mkdir()
    source = sorted((voc_root / "JPEGImages").iterdir())[0]
    shutil.copy(source, folder / "good.JFIF")
    (folder / "cut.jpg").write_bytes(source.read_bytes()[:-20])
    for name in ("._good.jpg", ".trash/old.jpg"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    os.mkfifo(folder / "fifo.jpg")
    Image.new("RGB", (16500, 2)).save(folder / "strip.png")
    os.rename(folder / "strip.png", folder / "strip.webp")  # too wide for WebP when it is drawn
    assert main(["detect", "--checkpoint", str(checkpoint), str(folder), str(folder / "fifo.jpg")]) == 1
    errors = capsys.readouterr().err
    assert errors.count("fifo.jpg: is a FIFO; expected a regular file") == 2
    assert errors.count("cut.jpg: is truncated; the missing part is gray") == 1
    results = json.loads((tmp_path / "runs" / "detect" / "detections.json").read_text())
    assert sorted(result["drawn"] for result in results) == ["cut.jpg", "good.jfif", "strip.png"]


def test_max_pixels_of_detect(tmp_path, voc_root, checkpoint, capsys):
    image = str(sorted((voc_root / "JPEGImages").iterdir())[0])
    detect = ["detect", "--checkpoint", str(checkpoint), image]
    assert main([*detect, "--max_pixels", "6143"]) == 1
    assert "has 96x64 = 6144 pixels, more than 6143" in capsys.readouterr().err
    assert main([*detect, "--max_pixels", "6144"]) == 0


def test_max_pixels_of_a_dataset(voc_root, capsys):
    stats = ["data", "stats", "--data.root", str(voc_root)]
    assert "more than 6143" in error_of([*stats, "--data.max_pixels", "6143"], capsys)
    assert main([*stats, "--data.max_pixels", "6144"]) == 0
    capsys.readouterr()
    assert "data.max_pixels=0; expected a positive integer" in error_of(
        [*stats, "--data.max_pixels", "0"], capsys
    )


def test_allow_outside(tmp_path, voc_root, capsys):
    image = sorted((voc_root / "JPEGImages").iterdir())[0]
    content = {
        "images": [{"id": 1, "file_name": str(image), "width": 96, "height": 64}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40]}],
        "categories": [{"id": 1, "name": "circle"}],
    }
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "result.json").write_text(json.dumps(content))
    stats = ["data", "stats", "--data.root", "coco", "--data.train", ""]
    assert "leads outside the dataset folder" in error_of(stats, capsys)
    assert main([*stats, "--data.allow_outside", "true"]) == 0


def test_an_empty_split_name_uses_all_images(copied, capsys):
    shutil.rmtree(copied / "ImageSets")
    stats = ["data", "stats", "--data.root", str(copied)]
    assert "has no splits; use all images with an empty name" in error_of(stats, capsys)
    assert main([*stats, "--data.train", ""]) == 0
    assert "12 of 12 images" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["1", "yes"])
def test_training_without_boxes_is_an_error(copied, capsys, flag, tmp_path):
    for file in (copied / "Annotations").iterdir():
        text = file.read_text().replace("<name>", f"<difficult>{flag}</difficult><name>")
        file.write_text(text.replace("<difficult>0</difficult>", ""))
    error = error_of(["train", "--data.root", str(copied)], capsys)
    assert "no box to train on (" in error
    assert "all of them difficult or crowds" in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("depth", [200, 900, 5000])  # accepted by both YAML parsers, by one, and by none
@pytest.mark.parametrize("subcommand", ["train", "evaluate"])
def test_a_configuration_nested_too_deeply(tmp_path, capsys, subcommand, depth):
    (tmp_path / "deep.yaml").write_text("data: " + "[" * depth + "]" * depth)
    assert len(error_of([subcommand, "--config", "deep.yaml"], capsys)) < 1000
