"""Text, XML, JSON and YAML in the encodings that datasets come in."""

from __future__ import annotations

import pytest

from fcos_fast.data import DataError, load_coco, load_dataset, load_voc, load_yolo
from tests.data.writers import CAT, save, write_coco, write_yolo

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
        ("gb2312", "gbk"),  # 喵 exists only in the extension
        ("utf-16", "utf-8"),  # as .NET writes it
        ("ascii", "utf-8"),
        (None, "utf-16"),
        (None, "utf-8-sig"),
        (None, "utf-16-le"),  # without a byte order mark
        (None, "utf-16-be"),
        (None, "utf-32"),
    ],
)
def test_xml_whose_declaration_is_wrong(make_voc, declared, written):
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
def test_unreadable_xml_is_an_error(make_voc, content):
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
def test_unreadable_json_and_yaml_are_errors(tmp_path, content):
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
def test_errors_shorten_a_yaml_bomb(tmp_path):
    """Ten lines that expand to a billion names."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    (tmp_path / "data.yaml").write_text("\n".join([*lines, "names: *a8", "train: images"]))
    with pytest.raises(DataError, match=r"data\.yaml: names is .*; expected a list") as error:
        load_yolo(tmp_path, "train")
    assert len(str(error.value)) < 1000
