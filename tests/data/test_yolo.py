"""YOLO files: rows by hand, variants of exporters, and one-line errors."""

from __future__ import annotations

import numpy as np
import pytest
import yaml
from PIL import Image

from fcos_fast.data import Categories, DataError, load_dataset, load_yolo


def write(root, rows, content=None, folder="images/train", labels="labels/train", size=(80, 40)):
    """A dataset of ``rows``: image -> text of its label file, or None."""
    content = {"names": ["cat", "dog"], "train": folder} if content is None else content
    root.mkdir(exist_ok=True)
    (root / "data.yaml").write_text(yaml.safe_dump(content))
    for place in (folder, labels):
        (root / place).mkdir(parents=True, exist_ok=True)
    for name, text in rows.items():
        Image.new("RGB", size).save(root / folder / f"{name}.png")
        if text is not None:
            (root / labels / f"{name}.txt").write_text(text)
    return root


def test_boxes_polygons_and_images_without_any(tmp_path):
    rows = {
        "a": "1 0.5 0.5 0.25 0.5\n\n0 0.1 0.2 0.1 0.2\n",
        "b": "0 0.25 0.5 0.75 0.25 0.5 1.0\n",
        "c": "",
        "d": None,
    }
    dataset = load_dataset(write(tmp_path, rows))
    assert dataset.categories == Categories(("cat", "dog"))
    a, b, c, d = dataset.records
    assert (a.labels.tolist(), a.size) == ([1, 0], (80, 40))
    np.testing.assert_allclose(a.boxes, [[30, 10, 50, 30], [4, 4, 12, 12]], rtol=1e-6)
    np.testing.assert_allclose(b.boxes, [[20, 10, 60, 40]], rtol=1e-6)
    assert len(c.boxes) == len(d.boxes) == 0
    assert "4 images (2 without boxes), 3 boxes" in str(dataset.report)


@pytest.mark.parametrize(
    ("shape", "points"), [([2, 3], "0.45 0.5 2 0.55 0.5 0"), ([2, 2], "0.45 0.5 0.55 0.5")]
)
def test_keypoints_are_no_polygon(tmp_path, shape, points):
    content = {"names": ["cat"], "train": "images/train", "kpt_shape": shape}
    root = write(tmp_path, {"a": f"0 0.5 0.5 0.25 0.5 {points}\n0 0.5 0.5 0.25 0.5\n"}, content)
    assert load_dataset(root).records[0].boxes.tolist() == [[30, 10, 50, 30]] * 2
    (root / "labels" / "train" / "a.txt").write_text("0 0.1 0.1 0.2 0.1 0.2 0.2 0.3 0.3\n" * 2)
    if shape == [2, 3]:
        with pytest.raises(
            DataError, match=r"a\.txt:1: has 8 numbers .*; expected a box of 4, and 6 for the"
        ):
            load_dataset(root)


@pytest.mark.parametrize("shape", ["17", "12", "[17]", "[17, 4]", "[a, 3]", "[0, 3]", "{x: 1}"])
def test_invalid_shape_of_keypoints(tmp_path, shape):
    root = write(tmp_path, {"a": "0 0.5 0.5 0.5 0.5"})
    (root / "data.yaml").write_text(f"names: [cat]\ntrain: images/train\nkpt_shape: {shape}\n")
    with pytest.raises(DataError, match=r"data\.yaml: kpt_shape is .*; expected the number of keypoints"):
        load_dataset(root)


@pytest.mark.parametrize(
    ("content", "split"),
    [
        ({"names": {0: "cat", 1: "dog"}, "train": "images/train"}, "train"),
        ({"names": ["cat", "dog"], "path": "..", "train": "data/images/train"}, None),
        ({"names": ["cat", "dog"], "path": "../datasets/elsewhere", "val": "images/train"}, "valid"),
        ({"names": ["cat", "dog"], "train": "../images/train"}, "train"),  # Roboflow
        ({"names": ["cat", "dog"], "train": ["images/train"]}, "train"),
        ({"names": ["cat", "dog"], "train": "train.txt"}, "train"),
    ],
)
def test_spellings_of_data_yaml(tmp_path, content, split):
    root = write(tmp_path / "data", {"a": "0 0.5 0.5 0.5 0.5", "b": "1 0.5 0.5 0.5 0.5"}, content)
    (root / "train.txt").write_text("./images/train/a.png\nimages/train/b.png\n")
    dataset = load_dataset(root, split)
    assert [(r.name, r.labels.tolist()) for r in dataset.records] == [("a.png", [0]), ("b.png", [1])]


def test_other_folders_of_labels(tmp_path):
    """Roboflow's train/images and train/labels, and text files beside the images."""
    rows = {"a": "1 0.5 0.5 0.5 0.5"}
    first = write(
        tmp_path / "first",
        rows,
        {"names": ["cat", "dog"], "train": "train/images"},
        "train/images",
        "train/labels",
    )
    second = write(tmp_path / "second", rows, {"names": ["cat", "dog"], "train": "all"}, "all", "all")
    assert [load_dataset(root).records[0].labels.tolist() for root in (first, second)] == [[1], [1]]


@pytest.mark.parametrize("folder", ["train", "train/images"])
def test_dataset_in_a_folder_of_images(tmp_path, folder):
    """Only the dataset's own folders ``images`` have folders of labels beside them."""
    rows = {"a": "1 0.5 0.5 0.5 0.5"}
    root = tmp_path / "images" / "pets"
    root.parent.mkdir()
    write(root, rows, {"names": ["cat", "dog"], "train": folder}, folder, folder.replace("images", "labels"))
    assert load_dataset(root).records[0].labels.tolist() == [1]


def test_validation_has_the_classes_of_training_by_name(tmp_path):
    root = write(tmp_path, {"a": "0 0.5 0.5 0.5 0.5"}, {"names": ["dog", "cat"], "train": "images/train"})
    assert load_dataset(root, "train", Categories(("cat", "dog"))).records[0].labels.tolist() == [1]
    with pytest.raises(DataError, match=r"a\.txt: unknown class 'dog'"):
        load_dataset(root, "train", Categories(("cat",)))


ODD_NAMES = [
    "no",
    "Yes",
    "on",
    "007",
    "12:30",
    "1_000",
    "null",
    "~",
    "2001-01-01",
    "1e3",
    "0x1F",
    ".5",
    "5",
    "true",
]
ODD_NAMES += [
    "N",
    "1.0",
    "1.10",
    ".inf",
    ".nan",
    "+1",
    "0b11",
    "2001-12-14t21:59:43.10-05:00",
    "<<",
    "=",
    "猫",
]


@pytest.mark.parametrize("row", ["- {1}", "  {0}: {1}", "  '{0}': '{1}'"])
def test_names_are_always_strings(tmp_path, row):
    root = write(tmp_path, {"a": "7 0.5 0.5 0.5 0.5"})
    rows = "\n".join(row.format(i, name) for i, name in enumerate(ODD_NAMES))
    (root / "data.yaml").write_text(f"train: images/train\nnames:\n{rows}\n", encoding="utf-8")
    data = load_dataset(root)
    assert data.categories.names == tuple(ODD_NAMES)
    assert data.records[0].labels.tolist() == [7]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("names: {0: cat, 0: dog}", "is not valid YAML .*repeats a key"),
        ("names: {0: cat, 2: dog}", "expected a list, or the numbers from 0 with their names"),
        ("names: {a: cat}", "expected a list, or the numbers from 0 with their names"),
        ("names: [cat, [dog]]", "expected a list"),
        ("names: [cat, '']", "class 1 has no name; add it"),
        ("names: [cat]\nnc: 2", "nc is '2', but names has 1; correct one of them"),
        ("names: []", "expected a list"),
    ],
)
def test_invalid_names_are_errors(tmp_path, text, message):
    root = write(tmp_path, {"a": "0 0.5 0.5 0.5 0.5"})
    (root / "data.yaml").write_text(f"{text}\ntrain: images/train\n")
    with pytest.raises(DataError, match=rf"data\.yaml: .*{message}"):
        load_dataset(root)


@pytest.mark.parametrize("nothing", ["", "~", "null", "''", "[]"])
def test_null_splits_are_ignored(tmp_path, nothing):
    root = write(tmp_path, {"a": "0 0.5 0.5 0.5 0.5"})
    (root / "data.yaml").write_text(
        f"names: [cat]\ntrain: images/train\nval: {nothing}\ntest: {nothing}\npath: {nothing}\nkpt_shape: {nothing}\n"
    )
    assert len(load_dataset(root)) == 1


def test_dataset_without_label_files_is_rejected(tmp_path):
    root = write(tmp_path, {"a": None, "b": None})
    message = (
        r"none of the 2 images of split train has a label file; the first would be .*labels/train/a\.txt"
    )
    with pytest.raises(DataError, match=message):
        load_dataset(root, "train")
    (root / "labels" / "train" / "b.txt").write_text("")
    assert len(load_dataset(root, "train")) == 2


@pytest.mark.parametrize("decimals", [5, 6])
@pytest.mark.parametrize("size", [(640, 480), (4032, 3024)])
def test_rounded_boxes_at_the_border_are_not_a_fault(tmp_path, decimals, size):
    rng = np.random.default_rng(0)
    rows = []
    for x, y in rng.uniform(0, 0.5, (200, 2)):  # from (x, 0) to (1, y)
        numbers = ((x + 1) / 2, y / 2, 1 - x, y)
        rows.append(" ".join(["0", *(f"{number:.{decimals}f}" for number in numbers)]))
    root = write(tmp_path, {"a": "\n".join(rows)}, size=size)
    data = load_dataset(root, strict=True)
    assert data.report.faults == {}
    boxes = data.records[0].boxes
    assert (boxes >= 0).all()
    assert (boxes <= [*size, *size]).all()
    np.testing.assert_allclose(boxes[:, 2], size[0], atol=1e-5 * size[0])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("2 0.5 0.5 0.5 0.5", r"a\.txt:1: has class 2; data\.yaml names 0 to 1"),
        ("-1 0.5 0.5 0.5 0.5", "has class -1"),
        ("0.5 0.5 0.5 0.5 0.5", "has class 0.5"),
        ("\n0 0.5 0.5 0.5", r"a\.txt:2: has 3 numbers after the class; expected 4"),
        ("0 0.5 0.5 0.5 0.5 0.5", "has 5 numbers after the class"),
        ("cat 0.5 0.5 0.5 0.5", "expected only numbers"),
        (
            "0 20 10 30 12",
            r"a\.txt:1: the numbers are 20 10 30 12; expected fractions of the image's size, not pixels",
        ),
    ],
)
def test_invalid_rows_are_reported_with_their_line(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        load_dataset(write(tmp_path, {"a": row}))


def test_invalid_boxes_are_skipped_and_counted(tmp_path):
    rows = [
        "0 0.5 0.5 0 0.5",
        "0 nan 0.5 0.1 0.1",
        "0 inf 0.5 0.1 0.1",
        "0 0.5 0.5 1e999 0.1",
        "0 2 2 0.1 0.1",
    ]
    dataset = load_dataset(write(tmp_path, {"a": "\n".join([*rows, "1 1 0.5 0.5 0.5"])}))
    assert dataset.records[0].boxes.tolist() == [[60, 10, 80, 30]]
    assert sum(dataset.report.faults.values()) == 6


@pytest.mark.parametrize(
    ("content", "split", "message"),
    [
        (
            {"names": ["cat"], "train": "images/train", "val": "x"},
            None,
            "several splits; choose one of train, val",
        ),
        (
            {"names": ["cat"], "train": "images/train"},
            "test",
            "unknown split test; this dataset has train",
        ),
        ({"names": ["cat"], "train": "images/other"}, "train", "'images/other' is at none of"),
        ({"names": ["cat"], "train": "labels"}, "train", r"split train has no images \(\.jpg"),
        ({"names": "cat", "train": "images/train"}, "train", "names is 'cat'; expected a list"),
        (
            {"names": {1: "cat"}, "train": "images/train"},
            "train",
            "expected a list, or the numbers from 0 with their names",
        ),
        ({"names": ["cat", "cat"], "train": "images/train"}, "train", "the name 'cat' occurs more than once"),
    ],
)
def test_missing_paths_in_data_yaml_are_errors(tmp_path, content, split, message):
    with pytest.raises(DataError, match=message):
        load_yolo(write(tmp_path, {"a": ""}, content), split)


def test_files_that_are_not_text(tmp_path):
    root = write(tmp_path, {"a": ""})
    (root / "labels" / "train" / "a.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"a\.txt: is not a text file"):
        load_dataset(root)
    (root / "data.yaml").write_text("names: [cat\ntrain: images/train\n")
    with pytest.raises(DataError, match=r"data\.yaml: is not valid YAML"):
        load_dataset(root)
