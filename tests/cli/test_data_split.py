"""``fcos-fast data split``: the new folder reads as the dataset with other splits, in every format."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from fcos_fast.cli.main import main
from fcos_fast.data import convert, dataset_splits, load_dataset


@pytest.fixture(scope="module")
def roots(voc_root, tmp_path_factory) -> dict[str, Path]:
    """The twelve images in every format, in a single split."""
    folder = tmp_path_factory.mktemp("formats")
    for name in ("coco", "yolo"):
        convert({"train": load_dataset(voc_root)}, name, folder / name)
    return {"voc": voc_root, "coco": folder / "coco", "yolo": folder / "yolo"}


def split(root: Path, output: Path, *options: str) -> int:
    return main(["data", "split", "--data.root", str(root), "--output", str(output), *options])


def files(root: Path, name: str | None) -> dict[Path, list]:
    dataset = load_dataset(root, name)
    return {record.image.resolve(): record.boxes.tolist() for record in dataset.records}


@pytest.mark.parametrize("kind", ["voc", "coco", "yolo"])
def test_every_image_is_in_one_split(roots, tmp_path, capsys, kind):
    before = sorted(roots[kind].rglob("*"))
    output = tmp_path / "new" / "out"
    assert split(roots[kind], output, "--fractions", "{train: 0.5, val: 0.25, test: 0.25}") == 0
    assert sorted(roots[kind].rglob("*")) == before
    assert sorted(dataset_splits(output)) == ["test", "train", "val"]
    parts = [files(output, name) for name in ("train", "val", "test")]
    assert [len(part) for part in parts] == [6, 3, 3]
    assert parts[0] | parts[1] | parts[2] == files(roots[kind], None)
    printed = capsys.readouterr().out
    assert "images                     12        6    50.0%        3    25.0%        3    25.0%" in printed


def test_other_entries_of_a_coco_file_are_kept(roots, tmp_path):
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "images").symlink_to(roots["coco"] / "train")
    content = json.loads((roots["coco"] / "annotations" / "instances_train.json").read_text())
    content["info"] = {"year": 2024}
    for annotation in content["annotations"]:
        annotation["segmentation"] = [[1, 2, 3, annotation["id"], 5, 6]]
    (root / "annotations" / "all.json").write_text(json.dumps(content))
    assert split(root, tmp_path / "out") == 0
    parts = [
        json.loads((tmp_path / "out" / "annotations" / f"instances_{name}.json").read_text())
        for name in ("train", "val")
    ]
    assert all(part["info"] == {"year": 2024} for part in parts)
    for key in ("images", "annotations"):
        both = sorted(parts[0][key] + parts[1][key], key=lambda entry: entry["id"])
        assert both == sorted(content[key], key=lambda entry: entry["id"])


def test_images_outside_the_folder_of_a_yolo_file(roots, tmp_path):
    (tmp_path / "configs").mkdir()
    (tmp_path / "yolo").symlink_to(roots["yolo"])
    text = (roots["yolo"] / "data.yaml").read_text()
    (tmp_path / "configs" / "data.yaml").write_text(f"path: ../yolo\n{text}")
    allow = ("--data.allow_outside", "true")
    assert split(tmp_path / "configs", tmp_path / "out", *allow) == 0
    parts = files(tmp_path / "out", "train") | files(tmp_path / "out", "val")
    assert parts == files(roots["yolo"], "train")


def test_keypoints_of_a_yolo_dataset_are_kept(roots, tmp_path):
    root = tmp_path / "yolo"
    shutil.copytree(roots["yolo"], root)
    with open(root / "data.yaml", "a") as file:
        file.write("kpt_shape: [2, 2]\n")
    for label in (root / "labels" / "train").iterdir():
        label.write_text("".join(f"{line} 0.1 0.1 0.9 0.9\n" for line in label.read_text().splitlines()))
    assert split(root, tmp_path / "out") == 0
    parts = files(tmp_path / "out", "train") | files(tmp_path / "out", "val")
    assert parts == files(root, "train")


def test_groups(voc_root, tmp_path, capsys):
    names = [record.name for record in load_dataset(voc_root).records]
    group_of = {name: f"patient {i // 3}" for i, name in enumerate(names)}
    (tmp_path / "groups.csv").write_text("".join(f"{name},{group}\n" for name, group in group_of.items()))
    fractions = ("--fractions", "{train: 0.5, val: 0.5}")
    assert split(voc_root, tmp_path / "a", *fractions, "--group_file", str(tmp_path / "groups.csv")) == 0
    assert "4 groups of 1 to 3 images" in capsys.readouterr().out
    assert split(voc_root, tmp_path / "b", *fractions, "--group", r"(\d)\.jpg") == 0
    for output, key in ((tmp_path / "a", group_of.get), (tmp_path / "b", lambda name: name[-5])):
        train, val = (
            {key(record.name) for record in load_dataset(output, name).records} for name in ("train", "val")
        )
        assert train
        assert val
        assert not train & val


def test_near_duplicates_stay_together(voc_root, tmp_path):
    pytest.importorskip("imagehash", reason="finds near-duplicates; install fcos_fast[check]")
    root = tmp_path / "voc"
    shutil.copytree(voc_root, root)
    images, xmls = root / "JPEGImages", root / "Annotations"
    stems = [path.stem for path in sorted(images.iterdir())]
    for stem in stems:  # each image twice, the second time darker
        with Image.open(images / f"{stem}.jpg") as image:
            image.point(lambda value: value * 0.95).save(images / f"{stem}-dark.jpg")
        shutil.copy(xmls / f"{stem}.xml", xmls / f"{stem}-dark.xml")
    assert (
        split(root, tmp_path / "out", "--group", "duplicates", "--fractions", "{train: 0.5, val: 0.5}") == 0
    )
    for name in ("train", "val"):
        found = (tmp_path / "out" / "ImageSets" / "Main" / f"{name}.txt").read_text().split()
        assert {stem.removesuffix("-dark") for stem in found if "-dark" in stem} == {
            stem for stem in found if "-dark" not in stem
        }
        assert len(found) == 12


def test_damaged_image_among_near_duplicates(voc_root, tmp_path, capsys):
    pytest.importorskip("imagehash", reason="finds near-duplicates; install fcos_fast[check]")
    root = tmp_path / "voc"
    shutil.copytree(voc_root, root)
    image = next((root / "JPEGImages").iterdir())
    image.write_bytes(image.read_bytes()[:400] + b"\xff\xd9")  # its header is intact
    assert split(root, tmp_path / "out", "--group", "duplicates") == 2
    error = capsys.readouterr().err
    assert f"{image}: cannot be read (" in error
    assert error.endswith("); replace or remove it\n")


def test_the_seed_decides(voc_root, tmp_path):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert split(voc_root, tmp_path / name, "--seed", seed) == 0
    a, b, c = ((tmp_path / name / "ImageSets" / "Main" / "train.txt").read_text() for name in "abc")
    assert a == b != c


def test_errors_are_one_line(roots, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "groups.csv").write_text("a.jpg,1\n")
    (tmp_path / "twice.csv").write_text("a.jpg,1\na.jpg,2\n")
    for kind, options, message in (
        (
            "voc",
            ["--output", str(tmp_path / "full")],
            "full: already exists; remove it or choose another folder",
        ),
        ("voc", ["--fractions", "{train: 0.9, val: 0.2}"], "is 1.1; expected 1"),
        ("voc", ["--fractions", "{train: 1.5, val: -0.5}"], "train is 1.5; expected a share of more than 0"),
        ("voc", ["--fractions", "{a/b: 1}"], "'a/b' is no name of a split"),
        (
            "voc",
            ["--fractions", "{train: 0.99, val: 0.01}"],
            "split val would have no image: 12 images for 2 splits",
        ),
        (
            "yolo",
            ["--fractions", "{train: 0.5, fold: 0.5}"],
            "split fold: a YOLO dataset has only train, val, test",
        ),
        ("voc", ["--group", "("], "--group '(': is not a regular expression"),
        ("voc", ["--group", "zebra"], "--group 'zebra': does not match the image "),
        ("voc", ["--group_file", str(tmp_path / "groups.csv")], "has no line for 12 images, the first is "),
        (
            "voc",
            ["--group_file", str(tmp_path / "twice.csv")],
            "twice.csv:2: a line before has a.jpg in group 1; keep one of the two",
        ),
        ("voc", ["--group", "a", "--group_file", "b"], "--group and --group_file: give only one of them"),
        ("voc", ["--data.split", "trian"], "trian.txt: unknown split; this dataset has train, val"),
    ):
        arguments = [
            "data",
            "split",
            "--data.root",
            str(roots[kind]),
            "--output",
            str(tmp_path / "out"),
            *options,
        ]
        assert main(arguments) == 2, message
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        assert not (tmp_path / "out").exists()
