"""``fcos-fast data check`` finds each planted fault in every format, and nothing in clean data."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
from PIL import Image

from fcos_fast.cli.main import main
from fcos_fast.cli.train import parse_train_options
from tests.quality.conftest import FORMATS, SIZE, SMALL, Photo, encode, write


def run(root, tmp_path, *options):
    """Exit status and findings by kind."""
    output = tmp_path / "check.json"
    arguments = ["--data.root", str(root), *SMALL, "--json", str(output), *options]
    status = main(["data", "check", *arguments])
    found = json.loads(output.read_text())["findings"] if output.exists() else []
    output.unlink(missing_ok=True)
    return status, {finding["kind"]: finding for finding in found}


def files(finding) -> set[str]:
    return {example["file"] for example in finding["examples"]}


@pytest.mark.parametrize("kind", FORMATS)
def test_clean_data_have_no_finding(clean, kind, tmp_path, capsys):
    root = write(tmp_path / "data", kind, clean)
    status, found = run(root, tmp_path, "--fail_on", "warning")
    assert (status, found) == (0, {})
    printed = capsys.readouterr().out
    assert printed.startswith("train: 45 images, ")
    assert printed.rstrip().endswith("Nothing found.")


def broken_bmp() -> bytes:
    """An image file whose header is intact, so that reading the size succeeds."""
    data = encode(np.random.default_rng(0).integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8), "BMP")
    return data[: len(data) // 3]


def again(photo: Photo, name: str, scale: float = 1.0, **options) -> Photo:
    """A photo saved again under another name, in another size."""
    image = Image.open(io.BytesIO(photo.data))
    size = tuple(round(side * scale) for side in image.size)
    boxes = tuple((label, tuple(v * scale for v in box)) for label, box in photo.boxes)
    return Photo(name, encode(image.resize(size), **options), boxes, size)


def turned(photo: Photo, name: str) -> Photo:
    """A photo stored rotated by a quarter turn, whose labels are for the stored pixels."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return Photo(name, encode(Image.open(io.BytesIO(photo.data)), exif=exif, quality=92), photo.boxes)


@pytest.mark.parametrize("kind", FORMATS)
def test_each_planted_fault_is_found(clean, kind, tmp_path, capsys):
    train, val = clean["train"], clean["val"]
    box = train[10].boxes[0]
    name, (x1, y1, x2, y2) = box
    train[0] = Photo("broken.bmp", broken_bmp(), train[0].boxes)
    train[1] = Photo("cut.jpg", train[1].data[: len(train[1].data) * 2 // 3], train[1].boxes)
    train[2] = Photo("blank.jpg", encode(np.full((SIZE[1], SIZE[0], 3), 40, np.uint8)), train[2].boxes)
    train += [
        Photo("same.jpg", train[20].data, train[20].boxes[1:]),
        again(train[21], "nearly.jpg", 0.7, quality=60),
    ]
    val += [Photo("leak.jpg", train[22].data, train[22].boxes), again(train[23], "small_leak.jpg", 0.5)]
    train[4] = Photo("empty.jpg", train[4].data, ())
    train[5] = turned(train[5], "turned.jpg")
    train[10] = train[10].add((name, (x1, y1, x2 - 0.2, y2)))
    other = next(label for photo in train for label, _ in photo.boxes if label != train[11].boxes[0][0])
    train[11] = train[11].add((other, train[11].boxes[0][1]))
    train[12] = train[12].add((name, (0, 0, *SIZE)))
    train[13] = train[13].add((name, (5, 60, 155, 66)))
    train[14] = train[14].add((name, (100, 100, 104, 103)))
    train[15] = train[15].add((name, (100, 20, 170, 80)))
    train[16] = train[16].add((name, (100, 20, 100, 80)))
    train[17] = train[17].add(("rare", (10, 10, 50, 50)))
    val[1] = val[1].add(("never seen", (10, 10, 50, 50)))
    train[18] = train[18].add((f" {name.upper()}", (10, 10, 50, 50)))

    root = write(tmp_path / "data", kind, clean)
    status, found = run(root, tmp_path)
    assert status == 1
    capsys.readouterr()

    expected = {
        "unreadable_images": ("error", 1, {"train/broken.bmp"}),
        "reader_truncated_jpeg": ("warning", 1, {"train/cut.jpg"}),
        "blank_images": ("warning", 1, {"train/blank.jpg"}),
        "duplicates_across_splits": ("error", 2, {"val/leak.jpg", "val/small_leak.jpg"}),
        "duplicates": ("warning", 2, {"train/same.jpg", "train/nearly.jpg"}),
        "images_without_boxes": ("note", 1, {"train/empty.jpg"}),
        "repeated_boxes": ("warning", 1, {f"train/{train[10].name}"}),
        "two_classes": ("warning", 1, {f"train/{train[11].name}"}),
        "whole_image_boxes": ("warning", 1, {f"train/{train[12].name}"}),
        "long_boxes": ("warning", 1, {f"train/{train[13].name}"}),
        "tiny_boxes": ("warning", 2, {f"train/{train[13].name}", f"train/{train[14].name}"}),
        "reader_box_partly_outside_the_image": ("warning", 1, {f"train/{train[15].name}"}),
        "reader_box_without_area": ("warning", 1, {f"train/{train[16].name}"}),
        "class_spelling": ("error", 1, None),
        "classes_never_trained": ("error", 1, {"never seen"}),
        "rare_classes": ("warning", 2, {"rare", f" {name.upper()}" if kind != "voc" else name.upper()}),
        "classes_never_evaluated": (
            "warning",
            2,
            {"rare", f" {name.upper()}" if kind != "voc" else name.upper()},
        ),
    }
    if kind == "yolo":  # its files state no size, so the stored image cannot be told from the upright one
        expected["exif_orientation"] = ("note", 1, {"train/turned.jpg"})
    else:
        expected["exif_rotation"] = ("error", 1, {"train/turned.jpg"})
    assert expected.keys() <= found.keys()
    if kind == "voc":  # its reader clips the boxes of the rotated image, too
        del expected["reader_box_partly_outside_the_image"]
    for what, (severity, count, where) in expected.items():
        finding = found[what]
        assert (finding["severity"], finding["count"]) == (severity, count), what
        assert where is None or files(finding) == where, what
    extra = {"boxes_on_no_level"}  # the tiny ones
    if kind == "voc":
        extra |= {
            "reader_annotation_for_another_image_size",
            "reader_box_partly_outside_the_image",
            "reader_box_outside_the_image",
        }
    assert found.keys() - expected.keys() <= extra
    details = {example["file"]: example["detail"] for example in found["duplicates"]["examples"]}
    assert details == {
        "train/same.jpg": f"identical to train/{train[20].name}, with other labels",
        "train/nearly.jpg": f"nearly identical to train/{train[21].name}",
    }
    severities = [finding["severity"] for finding in found.values()]
    assert severities == sorted(severities, key=["error", "warning", "note"].index)


@pytest.mark.parametrize("kind", ["voc", "coco"])
def test_only_images_labeled_unrotated_are_errors(clean, kind, tmp_path, capsys):
    """Of images that EXIF rotates, some are labeled for the stored image and others for the upright one."""
    for i in range(5):
        clean["train"][i] = turned(clean["train"][i], f"stored{i}.jpg")
        upright = turned(clean["train"][i + 5], f"upright{i}.jpg")
        clean["train"][i + 5] = replace(upright, stated=SIZE[::-1], boxes=(("circle", (10, 20, 60, 90)),))
    status, found = run(write(tmp_path / "data", kind, clean), tmp_path)
    assert status == 1
    assert files(found["exif_rotation"]) == {f"train/stored{i}.jpg" for i in range(5)}
    assert files(found["exif_orientation"]) == {f"train/upright{i}.jpg" for i in range(5)}

    assert "Remove the EXIF orientation without rotating the pixels" in found["exif_rotation"]["advice"]
    for i in range(5):
        photo = clean["train"][i]
        pixels = Image.open(io.BytesIO(photo.data))
        pixels.info.pop("exif")
        clean["train"][i] = replace(photo, data=encode(pixels, quality=92))
    _, found = run(write(tmp_path / "followed", kind, clean), tmp_path)
    assert "exif_rotation" not in found
    assert not [name for name in found if name.startswith(("reader_", "image_sizes"))]


def test_rotated_tiff(clean, tmp_path, capsys):
    """Pillow gives the upright size of such a file, not that of the stored image."""
    photo, exif = clean["train"][3], Image.Exif()
    exif[0x0112] = 6
    data = encode(Image.open(io.BytesIO(photo.data)), "TIFF", exif=exif)
    clean["train"][3] = Photo("a.tif", data, (("circle", (10, 20, 60, 90)),), SIZE[::-1])
    _, found = run(write(tmp_path / "data", "coco", clean), tmp_path)
    assert found.keys() & {"image_sizes", "exif_rotation", "exif_orientation"} == {"exif_orientation"}


@pytest.mark.parametrize("kind", ["coco", "yolo"])
def test_faults_are_shown_on_the_image_of_their_folder(clean, kind, tmp_path, capsys):
    clean["train"] = [replace(photo, name=f"{i % 2}/{i // 2}.jpg") for i, photo in enumerate(clean["train"])]
    clean["train"][6] = replace(
        clean["train"][6], boxes=(("circle", (1, 1, 20, 20)), ("circle", (100, 20, 170, 80)))
    )
    _, found = run(write(tmp_path / "data", kind, clean), tmp_path)
    (example,) = found["reader_box_partly_outside_the_image"]["examples"]
    assert example["boxes"][0] == pytest.approx([1, 1, 20, 20], abs=1e-3)


def test_exit_status(clean, tmp_path, capsys):
    clean["train"][3] = Photo("empty.jpg", clean["train"][3].data, ())
    clean["train"].append(Photo("copy.jpg", clean["train"][7].data, clean["train"][7].boxes))
    root = write(tmp_path / "data", "yolo", clean)
    statuses = {
        fail_on: run(root, tmp_path, "--fail_on", fail_on)[0] for fail_on in ("error", "warning", "never")
    }
    assert statuses == {"error": 0, "warning": 1, "never": 0}
    printed = capsys.readouterr().out
    assert "1 warning, 1 note." in printed
    assert "train/copy.jpg: identical to train/" in printed


@pytest.mark.parametrize("kind", FORMATS)
def test_a_split_that_cannot_be_loaded_is_a_finding(clean, kind, tmp_path, capsys):
    for i in (3, 7):
        clean["train"][i] = Photo(f"text{i}.jpg", b"no image", clean["train"][i].boxes)
    root = write(tmp_path / "data", kind, clean)
    if kind == "coco":  # loading does not open the images
        file = root / "annotations" / "train.json"
        file.write_text(file.read_text().replace('"category_id": 1,', '"category_id": 99,'))
    status, found = run(root, tmp_path)
    assert status == 1
    assert "split_not_loaded" in found
    damaged = files(found["unreadable_files"])
    assert {name.rpartition("/")[2] for name in damaged} == {
        "text3.jpg",
        "text7.jpg",
    }  # both, not only the first
    assert "val: 15 images" in capsys.readouterr().out


def crowded(name: str, rng: np.random.Generator) -> Photo:
    """A photo with 120 boxes, each overlapping its neighbor by half."""
    pixels = rng.integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    corners = [(x, y) for y in range(0, 100, 20) for x in range(0, 144, 6)]
    return Photo(name, encode(pixels), tuple(("cell", (x, y, x + 16, y + 18)) for x, y in corners))


def test_every_advised_option_is_one_of_train(tmp_path, capsys):
    rng = np.random.default_rng(0)
    tiny = tuple(("cell", (x, y, x + 4, y + 5)) for x in (10, 50, 90) for y in (10, 50, 90))
    images = [encode(rng.integers(0, 255, (SIZE[1], SIZE[0], 3), dtype=np.uint8)) for _ in range(4)]
    train = [Photo(f"{i}.jpg", data, tiny) for i, data in enumerate(images)]
    train[0] = train[0].add(("cell", (10, 10, 10, 30)))
    train.append(crowded("crowd.jpg", rng))
    root = write(tmp_path / "data", "coco", {"train": train})
    status, found = run(root, tmp_path, "--data.val", "", "--model.nms_threshold", "0.4")
    assert status == 1
    advised = {kind: finding["options"] for kind, finding in found.items() if finding["options"]}
    assert advised.keys() == {
        *("tiny_boxes", "boxes_on_no_level", "crowded_images", "overlapping_objects", "few_images"),
        "reader_box_without_area",
    }
    for options in advised.values():
        parse_train_options(["--data.root", str(root), *options])  # raises for an unknown option or value
    together = [*SMALL, *chain.from_iterable(advised.values())]
    chosen = parse_train_options(together)
    assert chosen.model.max_detections >= 120
    assert chosen.model.nms_threshold > 0.4
    assert chosen.train.batch_size <= len(train)
    assert chosen.model.min_size > SIZE[1]
    printed = capsys.readouterr().out
    assert f"fcos-fast train --train.batch_size {chosen.train.batch_size}\n" in printed

    status, found = run(root, tmp_path, "--data.val", "", *together, "--data.strict", "false")
    assert not found.keys() & {"crowded_images", "overlapping_objects", "few_images"}

    _, found = run(root, tmp_path, "--data.val", "", "--model.min_size", "120", "--model.max_size", "160")
    options = found["tiny_boxes"]["options"]
    assert options[-4:] == ["--model.min_size", "256", "--model.max_size", "320"]  # both sides are doubled


@pytest.mark.parametrize("together", [True, False])
def test_imbalance(together, tmp_path, capsys):
    """Classes of the same images are weighted; images of their own are repeated."""
    pixels = np.random.default_rng(0).integers(0, 255, (20, SIZE[1], SIZE[0], 3), dtype=np.uint8)
    many = tuple(("cell", (x, y, x + 14, y + 14)) for x in range(0, 140, 20) for y in range(0, 100, 20))
    one = ("rare", (10.0, 103.0, 150.0, 119.0))
    train = [
        Photo(
            f"{i}.jpg", encode(data), (*many, one) if together and i < 10 else (one,) if i < 10 else many * 2
        )
        for i, data in enumerate(pixels)
    ]
    train[10] = Photo("10.jpg", encode(pixels[10]), (one, *many * 2)) if not together else train[10]
    root = write(tmp_path / "data", "yolo", {"train": train})
    _, found = run(root, tmp_path, "--data.val", "")
    options = found["class_imbalance"]["options"]
    assert options == (
        ["--model.class_weights", "balanced"] if together else ["--data.repeat_threshold", "1"]
    )
    parse_train_options(options)
    advice = found["class_imbalance"]["advice"]
    assert "In train, cell has" in advice
    assert ("shown about 1.3 times per epoch" in advice) == (not together)  # 11 of 20 images


def test_groups_keep_duplicates_together(clean, tmp_path, capsys):
    train = clean["train"][:10]
    train.append(Photo("same.jpg", train[4].data, train[4].boxes))
    train.append(again(train[4], "nearly.jpg", 0.7))
    train.append(Photo("broken.bmp", broken_bmp(), ()))
    root = write(tmp_path / "data", "yolo", {"train": train})
    run(root, tmp_path, "--data.val", "", "--groups", str(tmp_path / "groups.csv"))
    group = dict(line.split(",") for line in (tmp_path / "groups.csv").read_text().splitlines())
    assert group.keys() == {photo.name for photo in train}
    assert group["same.jpg"] == group["nearly.jpg"] == group[train[4].name]
    assert len(set(group.values())) == len(train) - 2


@pytest.mark.parametrize("kind", FORMATS)
def test_divided_by_groups_no_duplicate_is_in_two_splits(clean, kind, tmp_path, capsys):
    train = clean["train"][:12]
    train += [Photo(f"copy{i}.jpg", train[i].data, train[i].boxes) for i in range(6)]
    root, new = write(tmp_path / "data", kind, {"train": train}), tmp_path / "new"
    _, found = run(root, tmp_path, "--data.val", "", "--groups", str(tmp_path / "groups.csv"))
    assert found["duplicates"]["count"] == 6
    divide = ["--data.split", "train", "--output", str(new), "--group_file", str(tmp_path / "groups.csv")]
    fractions = ["--fractions", "{train: 0.5, val: 0.5}"]
    assert main(["data", "split", "--data.root", str(root), *divide, *fractions]) == 0
    _, found = run(new, tmp_path)
    assert "duplicates_across_splits" not in found
    assert found["duplicates"]["count"] == 6


def test_errors_are_one_line(clean, tmp_path, capsys, monkeypatch):
    root = write(tmp_path / "data", "yolo", clean)
    assert main(["data", "check", "--data.root", str(tmp_path / "none")]) == 2
    assert "does not exist; give the folder of a dataset" in capsys.readouterr().err
    assert main(["data", "check"]) == 2
    assert "no dataset; give its folder with --data.root" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "imagehash", None)
    assert main(["data", "check", "--data.root", str(root)]) == 2
    assert "fcos_fast[check]" in capsys.readouterr().err
