"""Text in the encodings that people have, files that systems leave behind, and where paths may lead."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import yaml
from PIL import Image

from fcos_fast.data import DataError, load_coco, load_dataset, load_voc, load_yolo

CAT = ("cat", (1, 2, 30, 20))
ROW = "0 0.5 0.5 0.5 0.5\n"


def save(path, size=(40, 30)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size).save(path)


def write_yolo(root, images=("images/train/a.jpg",), **content):
    """A YOLO data set of one class, each image with a box."""
    root.mkdir(parents=True, exist_ok=True)
    for image in images:
        save(root / image)
        label = (root / image.replace("images/", "labels/")).with_suffix(".txt")
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_text(ROW)
    (root / "data.yaml").write_text(yaml.safe_dump({"names": ["cat"], "train": "images/train", **content}))
    return root


def write_coco(root, names=("a.jpg",), file="annotations/train.json", **changes):
    """A COCO file of one class, each image with a box; the images themselves are not written."""
    content = {
        "images": [{"id": i, "file_name": name, "width": 40, "height": 30} for i, name in enumerate(names)],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [1, 2, 10, 9]} for i in range(len(names))
        ],
        "categories": [{"id": 1, "name": "cat"}],
        **changes,
    }
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / file).write_text(json.dumps(content))
    return root


# Text

XML_ENCODINGS = ["gb2312", "GBK", "gb18030", "Big5", "Shift_JIS", "EUC-KR", "EUC-JP", "ISO-8859-1"]
XML_ENCODINGS += ["windows-1252", "KOI8-R", "UTF-8", "utf-16", "x-sjis", "ks_c_5601-1987"]
WORDS = {
    "Shift_JIS": "ねこ",
    "x-sjis": "ねこ",
    "EUC-JP": "ねこ",
    "EUC-KR": "고양이",
    "ks_c_5601-1987": "고양이",
}
WORDS |= {"ISO-8859-1": "café", "windows-1252": "café", "KOI8-R": "кот", "Big5": "貓"}


@pytest.mark.parametrize("encoding", XML_ENCODINGS)
def test_xml_in_the_encoding_that_it_declares(make_voc, encoding):
    root = make_voc({"a": [CAT]})
    name = WORDS.get(encoding, "猫")
    xml = (root / "Annotations" / "a.xml").read_text().replace("<name>cat", f"<name>{name}")
    codec = encoding.lower().removeprefix("x-")
    text = f'<?xml version="1.0" encoding="{encoding}"?>\n{xml}'
    (root / "Annotations" / "a.xml").write_bytes(text.encode(codec))
    data = load_voc(root)
    assert data.categories.names == (name,)
    assert data.report.faults == {}


@pytest.mark.parametrize(
    ("declared", "written"),
    [
        ("gb2312", "gbk"),  # 喵 is in the extension alone
        ("utf-16", "utf-8"),  # as .NET writes it
        ("ascii", "utf-8"),
        (None, "utf-16"),
        (None, "utf-8-sig"),
        (None, "utf-16-le"),  # without a byte order mark
        (None, "utf-16-be"),
        (None, "utf-32"),
    ],
)
def test_xml_whose_declaration_is_not_quite_right(make_voc, declared, written):
    root = make_voc({"a": [("喵", (1, 2, 30, 20))]})
    file = root / "Annotations" / "a.xml"
    declaration = f'<?xml version="1.0" encoding="{declared}"?>' if declared else ""
    file.write_bytes((declaration + file.read_text(encoding="utf-8")).encode(written))
    assert load_voc(root).categories.names == ("喵",)


@pytest.mark.parametrize(
    "content",
    [
        b'<?xml version="1.0" encoding="rot13"?><annotation/>',
        b'<?xml version="1.0" encoding="gb2312"?><annotation>\xff\xff</annotation>',
        b"<annotation>\0</annotation>",
        b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>',
        b'<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa">'
        + b"".join(b'<!ENTITY %c "%s">' % (c, b"&%c;" % (c - 1) * 10) for c in b"bcdefghij")
        + b"]><annotation>&j;</annotation>",
    ],
)
def test_xml_that_cannot_be_read_is_named(make_voc, content):
    root = make_voc({"a": [CAT]})
    file = root / "Annotations" / "a.xml"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.xml: is n") as error:
        load_voc(root)
    assert "\n" not in str(error.value)


ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_lists_of_images_in_any_encoding(make_voc, tmp_path, encoding, newline):
    text = newline.join(["café", "b", ""])
    root = make_voc({"café": [CAT], "b": [CAT]})
    (root / "ImageSets" / "Main" / "train.txt").write_bytes(text.encode(encoding))
    voc = load_voc(root, "train")
    assert [record.name for record in voc.records] == ["café.jpg", "b.jpg"]
    yolo = write_yolo(tmp_path / "yolo", ["images/all/café.jpg", "images/all/b.jpg"], train="train.txt")
    text = newline.join(["images/all/café.jpg", "./images/all/b.jpg"])
    (yolo / "train.txt").write_bytes(text.encode(encoding))
    dataset = load_yolo(yolo, "train")
    assert [record.name for record in dataset.records] == ["café.jpg", "b.jpg"]
    faults = {"text that is not UTF-8, read as Windows-1252": 1} if encoding == "latin-1" else {}
    assert voc.report.faults == dataset.report.faults == faults
    (yolo / "data.yaml").write_bytes("names: [chaîne]\ntrain: images/all\n".encode(encoding))
    dataset = load_yolo(yolo)
    assert dataset.categories.names == ("chaîne",)
    assert dataset.report.faults == faults


@pytest.mark.parametrize("encoding", ENCODINGS[:-1])
def test_json_yaml_and_labels_in_any_encoding(tmp_path, encoding):
    coco = write_coco(tmp_path / "coco", categories=[{"id": 1, "name": "猫"}])
    save(coco / "train" / "a.jpg")
    yolo = write_yolo(tmp_path / "yolo")
    (yolo / "data.yaml").write_text("names: [猫]\ntrain: images/train\n", encoding="utf-8")
    files = [coco / "annotations/train.json", yolo / "data.yaml", yolo / "labels/train/a.txt"]
    for file in files:
        file.write_bytes(file.read_text(encoding="utf-8").encode(encoding))
    for root in (coco, yolo):
        data = load_dataset(root)
        assert data.categories.names == ("猫",)
        assert len(data.records[0].boxes) == 1


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "content",
    [
        b"[" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"\xff\xfe\x00",
        b"\0" * 100,
        bytes(range(256)),
        b"",
        b"nul",
        b'{"images": [], "annotations": [], "categories": [',
    ],
    ids=["deep", "deep and closed", "deep objects", "odd utf-16", "zeros", "binary", "empty", "word", "cut"],
)
def test_json_and_yaml_that_cannot_be_read_are_named(tmp_path, content):
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    (tmp_path / "coco" / "annotations" / "train.json").write_bytes(content)
    with pytest.raises(DataError, match=r"train\.json: (is not valid JSON|is not a text file|has no list)"):
        load_coco(tmp_path / "coco")
    (tmp_path / "yolo").mkdir()
    (tmp_path / "yolo" / "data.yaml").write_bytes(content)
    if content not in (b"", b"nul", b"[]"):
        with pytest.raises(DataError, match=r"data\.yaml: is (not valid YAML|not a text file)"):
            load_yolo(tmp_path / "yolo")


@pytest.mark.timeout(20)
def test_yaml_that_grows_is_not_printed_in_full(tmp_path):
    """A billion names in ten lines."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    (tmp_path / "data.yaml").write_text("\n".join([*lines, "names: *a8", "train: images"]))
    with pytest.raises(DataError, match=r"data\.yaml: names is .*; expected a list") as error:
        load_yolo(tmp_path, "train")
    assert len(str(error.value)) < 1000


# What systems leave behind

LEFTOVERS = ["._a.jpg", ".hidden.jpg", ".ipynb_checkpoints/a-checkpoint.jpg", "__MACOSX/a.jpg"]
LEFTOVERS += [".trash/old.jpg", "@eaDir/a.jpg", "__MACOSX/deep/._a.jpg", ".git/a.jpg"]


def leave_behind(folder):
    for name in LEFTOVERS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"\0\5\x16\7 no image")


def test_leftovers_are_no_images(make_voc, tmp_path):
    voc = make_voc({"a": [CAT]}, train=["a", "._a"])
    leave_behind(voc / "JPEGImages")
    for name in ("Annotations/._a.xml", "ImageSets/Main/._train.txt", "Annotations/.b.xml"):
        (voc / name).write_bytes(b"\0\5\x16\7")
    yolo = write_yolo(tmp_path / "yolo")
    leave_behind(yolo / "images" / "train")
    (yolo / "._data.yaml").write_bytes(b"\0\5\x16\7")
    (yolo / "labels" / "train" / "._a.txt").write_bytes(b"\0\5\x16\7")
    coco = write_coco(tmp_path / "coco", ["a.jpg", "._a.jpg", "__MACOSX/._b.jpg"])
    save(coco / "train" / "a.jpg")
    leave_behind(coco / "train")
    (coco / "annotations" / "._train.json").write_bytes(b"\0\5\x16\7")
    for root in (voc, yolo, coco):
        for split in (None, "train"):
            data = load_dataset(root, split)
            assert [record.name for record in data.records] == ["a.jpg"]
            skipped = {"file that the system left behind, skipped"}
            assert set(data.report.faults) == (skipped if root == coco or (root == voc and split) else set())


def test_splits_in_hidden_folders_are_none(make_voc, tmp_path):
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


# Folders and paths as people have them


def test_linked_folders_are_read_and_circles_end(tmp_path):
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


def test_folders_that_link_to_each_other_end(tmp_path):
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
def test_coco_files_and_names_as_exporters_write_them(tmp_path, file, name, image):
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
def test_yolo_lists_as_people_write_them(tmp_path, line, image):
    root = write_yolo(tmp_path, [image], train="train.txt")
    (root / "train.txt").write_text(line)
    assert load_yolo(root).records[0].image == root / image


def test_yolo_with_backslashes_and_capital_suffixes(tmp_path):
    root = write_yolo(tmp_path, train="images\\train")
    (root / "labels" / "train" / "a.txt").rename(root / "labels" / "train" / "a.TXT")
    (root / "data.yaml").rename(root / "data.YAML")
    assert len(load_dataset(root, "train").records[0].boxes) == 1


def test_voc_lists_as_people_write_them(make_voc):
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


# Paths that leave the data folder


@pytest.fixture
def secret(tmp_path):
    save(tmp_path / "secret.jpg")
    (tmp_path / "secret.txt").write_text(ROW)
    return tmp_path / "secret.jpg"


def forms(secret, root):
    relative = os.path.relpath(secret, root)
    return [str(secret), relative, relative.replace("/", "\\"), f"x/../{relative}"]


REFUSED = r"leads outside the dataset folder .*set; correct the path, or give --data\.allow_outside true"


def test_coco_names_outside_are_refused_unless_allowed(tmp_path, secret):
    root = tmp_path / "set"
    save(root / "train" / "a.jpg")
    for name in forms(secret, root / "train"):
        for names in ([name], ["a.jpg", name]):
            write_coco(root, names)
            with pytest.raises(DataError, match=rf"train\.json: .*{REFUSED}"):
                load_dataset(root)
            data = load_dataset(root, allow_outside=True)
            assert data.records[-1].image.samefile(secret)


def test_yolo_lines_outside_are_refused_unless_allowed(tmp_path, secret):
    root = write_yolo(tmp_path / "set", train="train.txt")
    for line in forms(secret, root):
        (root / "train.txt").write_text(line)
        with pytest.raises(DataError, match=rf"train\.txt: .*{REFUSED}"):
            load_dataset(root)
        assert load_dataset(root, allow_outside=True).records[0].image.samefile(secret)


def test_yolo_folders_outside_are_refused_unless_allowed(tmp_path):
    write_yolo(tmp_path / "other")
    for train in (str(tmp_path / "other/images/train"), "../other/images/train", "..\\other\\images\\train"):
        root = write_yolo(tmp_path / "set", [], train=train)
        with pytest.raises(DataError, match=rf"data\.yaml: .*{REFUSED}"):
            load_dataset(root)
        assert len(load_dataset(root, allow_outside=True)) == 1
    root = write_yolo(tmp_path / "set", [], path=str(tmp_path / "other"))
    with pytest.raises(DataError, match=REFUSED):
        load_dataset(root)
    assert len(load_dataset(root, allow_outside=True)) == 1


def test_roboflows_paths_mean_the_folder_inside(tmp_path):
    """``../train/images`` is beside the data.yaml, whatever lies outside."""
    write_yolo(tmp_path, ["train/images/outside.jpg"])
    root = write_yolo(tmp_path / "set", ["train/images/inside.jpg"], train="../train/images")
    assert [record.name for record in load_dataset(root).records] == ["inside.jpg"]


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a\0.jpg", "a" * 5000 + ".jpg", "~", "~nobody/x.jpg", "/", "\\"]
)
def test_names_that_no_file_has(tmp_path, name):
    save(tmp_path / "set" / "train" / "a.jpg")
    for names in ([name], ["a.jpg", name]):
        write_coco(tmp_path / "set", names)
        with pytest.raises(DataError, match=r"/set(/annotations/train\.json|/train)?: ") as error:
            load_coco(tmp_path / "set")
        assert len(str(error.value)) < 2000
