"""``fcos-fast data show``: the sheet shows the images and labels that were asked for."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageOps

from fcos_fast.cli.main import main
from fcos_fast.data import load_dataset
from fcos_fast.data.images import read_pixels
from fcos_fast.quality.sheet import COLUMNS, WIDTH, choose_images
from fcos_fast.visualize import draw_boxes
from tests.quality.conftest import FORMATS, SIZE, write

PLAIN = [
    f"--augment.{name}={value}" for name, value in {"brightness": 0, "contrast": 0, "saturation": 0}.items()
]
HEIGHT = WIDTH * SIZE[1] // SIZE[0]


def show(root, output, *options):
    command = ["data", "show", "--data.root", str(root), "--output", str(output), *options]
    assert main(command) == 0
    return Image.open(output)


def cell(sheet, column):
    """An image of the first row."""
    x = 8 + column * (WIDTH + 8)
    return np.asarray(sheet.crop((x, 8, x + WIDTH, 8 + HEIGHT)), dtype=int)


@pytest.mark.parametrize("kind", FORMATS)
def test_images_with_their_labels(clean, kind, tmp_path):
    root = write(tmp_path / "data", kind, clean)
    sheet = show(root, tmp_path / "sheet.png", "--images", "6", "--seed", "3")
    assert sheet.width == 8 + COLUMNS * (WIDTH + 8)
    assert sheet.height > 2 * HEIGHT
    dataset = load_dataset(root, "train")
    record = dataset.records[choose_images(dataset, 6, seed=3)[1]]
    drawn = draw_boxes(
        read_pixels(record.image),
        record.boxes,
        record.labels,
        dataset.categories.names,
        scale=WIDTH / SIZE[0],
    )
    assert np.array_equal(cell(sheet, 1), np.asarray(drawn, dtype=int))


def test_choice(clean, tmp_path):
    photo = clean["train"][7]
    clean["train"][7] = photo.add(("rare", (10, 10, 50, 50)))
    dataset = load_dataset(write(tmp_path / "data", "yolo", clean), "train")
    assert choose_images(dataset, 16, ["rare"]) == [7]
    chosen = choose_images(dataset, 16, seed=1)
    assert len(set(chosen)) == 16
    assert chosen == choose_images(dataset, 16, seed=1) != choose_images(dataset, 16, seed=2)
    assert sorted(choose_images(dataset, 100)) == list(range(45))


def test_augmented_images_are_those_of_training(clean, tmp_path):
    root = write(tmp_path / "data", "voc", clean)
    flip = ["--augment.horizontal_flip", "1", *PLAIN]
    sheet = show(root, tmp_path / "sheet.png", "--augmented", "true", "--images", "1", *flip)
    dataset = load_dataset(root, "train")
    record = dataset.records[choose_images(dataset, 1)[0]]
    mirrored = ImageOps.mirror(Image.fromarray(read_pixels(record.image)))
    boxes = record.boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [SIZE[0], 0, SIZE[0], 0]
    names = dataset.categories.names
    expected = np.asarray(draw_boxes(mirrored, boxes, record.labels, names, scale=WIDTH / SIZE[0]), dtype=int)
    for column in range(1, COLUMNS):
        assert np.array_equal(cell(sheet, column), expected)
    jittered = show(root, tmp_path / "other.png", "--augmented", "true", "--images", "1")
    assert not np.array_equal(cell(jittered, 1), cell(jittered, 2))  # another epoch


def test_ignored_boxes_are_not_trained(clean, tmp_path):
    root = write(tmp_path / "data", "voc", clean)
    for file in (root / "Annotations").iterdir():
        file.write_text(file.read_text().replace("<bndbox>", "<difficult>1</difficult><bndbox>"))
    flip = ["--augment.horizontal_flip", "0", *PLAIN]
    sheet = show(root, tmp_path / "sheet.png", "--augmented", "true", "--images", "1", *flip)
    dataset = load_dataset(root, "train")
    record = dataset.records[choose_images(dataset, 1)[0]]
    image = read_pixels(record.image)
    plain = np.asarray(Image.fromarray(image).resize((WIDTH, HEIGHT)), dtype=int)
    assert np.array_equal(cell(sheet, 1), plain)
    assert not np.array_equal(cell(sheet, 0), plain)


def test_errors_are_one_line(clean, tmp_path, capsys):
    root = write(tmp_path / "data", "yolo", clean)
    for options, message in (
        ([], "no dataset; give its folder with --data.root"),
        (["--data.root", str(root), "--classes", "[triangel]"], "unknown class 'triangel'"),
        (["--data.root", str(root), "--images", "0"], "--images=0; expected a positive integer or None"),
        (["--data.root", str(root), "--output", str(tmp_path / "no" / "a.png")], "its folder does not exist"),
    ):
        assert main(["data", "show", *options]) in (1, 2)
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
