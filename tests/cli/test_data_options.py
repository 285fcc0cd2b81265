"""Data sets and images on the command line: what is skipped, what is refused in one line, and what an option allows."""

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
def copied(images, tmp_path):
    """A copy of the data set to change."""
    return shutil.copytree(images, tmp_path / "set")


def error_of(arguments, capsys) -> str:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    return error


@pytest.mark.timeout(60)
def test_detect_in_a_folder_with_more_than_images(tmp_path, images, checkpoint, capsys):
    folder = tmp_path / "photos"
    (folder / ".trash").mkdir(parents=True)
    (folder / "folder.jpg").mkdir()
    source = sorted((images / "JPEGImages").iterdir())[0]
    shutil.copy(source, folder / "good.JFIF")
    (folder / "cut.jpg").write_bytes(source.read_bytes()[:-20])
    for name in ("._good.jpg", ".trash/old.jpg"):
        (folder / name).write_bytes(b"\0\5\x16\7")
    os.mkfifo(folder / "fifo.jpg")
    Image.new("RGB", (16500, 2)).save(folder / "strip.png")
    os.rename(folder / "strip.png", folder / "strip.webp")  # drawn again, it would not fit into a WebP
    assert main(["detect", "--checkpoint", str(checkpoint), str(folder), str(folder / "fifo.jpg")]) == 1
    errors = capsys.readouterr().err
    assert errors.count("fifo.jpg: is a FIFO; expected a regular file") == 2
    assert errors.count("cut.jpg: is cut short; read as far as it goes") == 1
    results = json.loads((tmp_path / "runs" / "detect" / "detections.json").read_text())
    assert sorted(result["drawn"] for result in results) == ["cut.jpg", "good.jfif", "strip.png"]


def test_detect_takes_as_many_pixels_as_are_allowed(tmp_path, images, checkpoint, capsys):
    image = str(sorted((images / "JPEGImages").iterdir())[0])
    detect = ["detect", "--checkpoint", str(checkpoint), image]
    assert main([*detect, "--max_pixels", "6143"]) == 1
    assert "has 96x64 = 6144 pixels, more than 6143" in capsys.readouterr().err
    assert main([*detect, "--max_pixels", "6144"]) == 0


def test_data_set_has_as_many_pixels_as_are_allowed(images, capsys):
    stats = ["data", "stats", "--data.root", str(images)]
    assert "more than 6143" in error_of([*stats, "--data.max_pixels", "6143"], capsys)
    assert main([*stats, "--data.max_pixels", "6144"]) == 0
    capsys.readouterr()
    assert "data.max_pixels=0; expected a positive integer" in error_of(
        [*stats, "--data.max_pixels", "0"], capsys
    )


def test_paths_outside_the_data_folder_are_allowed_by_an_option(tmp_path, images, capsys):
    image = sorted((images / "JPEGImages").iterdir())[0]
    content = {
        "images": [{"id": 1, "file_name": str(image), "width": 96, "height": 64}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 30, 40]}],
        "categories": [{"id": 1, "name": "circle"}],
    }
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "result.json").write_text(json.dumps(content))
    stats = ["data", "stats", "--data.root", "coco", "--data.train", ""]
    assert "leads outside the data folder" in error_of(stats, capsys)
    assert main([*stats, "--data.allow_outside", "true"]) == 0


def test_an_empty_split_takes_every_image(copied, capsys):
    shutil.rmtree(copied / "ImageSets")
    stats = ["data", "stats", "--data.root", str(copied)]
    assert "has no splits; take every image with an empty name" in error_of(stats, capsys)
    assert main([*stats, "--data.train", ""]) == 0
    assert "12 of 12 images" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["1", "yes"])
def test_training_on_nothing_is_refused(copied, capsys, flag, tmp_path):
    for file in (copied / "Annotations").iterdir():
        text = file.read_text().replace("<name>", f"<difficult>{flag}</difficult><name>")
        file.write_text(text.replace("<difficult>0</difficult>", ""))
    error = error_of(["train", "--data.root", str(copied)], capsys)
    assert "no box to train on (" in error
    assert "all of them difficult or crowds" in error
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("depth", [200, 900, 5000])  # within what one parser takes, another, and none
@pytest.mark.parametrize("subcommand", ["train", "evaluate"])
def test_a_configuration_nested_too_deep(tmp_path, capsys, subcommand, depth):
    (tmp_path / "deep.yaml").write_text("data: " + "[" * depth + "]" * depth)
    assert len(error_of([subcommand, "--config", "deep.yaml"], capsys)) < 1000
