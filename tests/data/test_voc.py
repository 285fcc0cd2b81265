from __future__ import annotations

import pytest
import torch
from PIL import Image

from fcos_fast.data import Categories, DataError, dataset_splits, load_dataset, load_voc

CAT = ("cat", (1, 2, 30, 20))
DOG = ("dog", (0, 0, 40, 30))


def error_line(call) -> str:
    """The message of the DataError that ``call`` raises: one line."""
    with pytest.raises(DataError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_reads_boxes_unchanged(make_voc):
    data = load_voc(make_voc({"b": [DOG, CAT], "a": []}, train=["b", "a"]), "train")
    assert data.categories.names == ("cat", "dog")
    assert [record.name for record in data.records] == ["b.jpg", "a.jpg"]
    image, target = data[0]
    assert image.shape == (3, 30, 40)
    assert image.dtype == torch.uint8
    assert target["boxes"].tolist() == [[0, 0, 40, 30], [1, 2, 30, 20]]
    assert target["labels"].tolist() == [1, 0]
    assert target["ignore"].tolist() == [False, False]
    assert target["image_id"] == 0
    empty = data[1][1]
    assert empty["boxes"].shape == (0, 4)
    assert (data.report.images, data.report.empty_images, data.report.boxes) == (2, 1, 2)


def test_difficult_is_kept_as_ignore(make_voc):
    root = make_voc({"a": [CAT]})
    file = root / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace("<name>", "<difficult>1</difficult><name>"))
    data = load_voc(root)
    assert data[0][1]["ignore"].tolist() == [True]
    assert data.coco_ground_truth()["annotations"][0]["iscrowd"] == 1


FLAGS = {
    False: [
        "0",
        "0.0",
        "False",
        "false",
        "NO",
        "no",
        "n",
        "f",
        "off",
        "Unspecified",
        "None",
        "null",
        "",
        "  0\n",
    ],
    True: ["1", "1.0", "True", "TRUE", "yes", "Y", "t", "on", " 1 "],
}


@pytest.mark.parametrize(("text", "expected"), [(text, flag) for flag in FLAGS for text in FLAGS[flag]])
def test_spellings_of_difficult(make_voc, text, expected):
    root = make_voc({"a": [CAT]})
    file = root / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace("<name>", f"<difficult>{text}</difficult><name>"))
    data = load_voc(root, strict=True)
    assert data.records[0].ignore.tolist() == [expected]
    assert ("1 boxes (1 difficult or crowds, ignored)" in str(data.report)) == expected


@pytest.mark.parametrize("text", ["2", "-1", "maybe", "nan", "0x1", "difficult", "1 0"])
def test_difficult_that_is_neither_yes_nor_no_is_counted(make_voc, text):
    root = make_voc({"a": [CAT, DOG]})
    file = root / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace("<name>cat", f"<difficult>{text}</difficult><name>cat"))
    data = load_voc(root)
    assert data.records[0].ignore.tolist() == [False, False]
    assert data.report.faults == {"difficult that is neither yes nor no, read as no": 1}
    assert f"a.xml: '{text}'" in str(data.report)
    assert "difficult that is neither" in error_line(lambda: load_voc(root, strict=True))


@pytest.mark.parametrize(
    ("width", "height", "fits"),
    [
        *((width, height, True) for width, height in (("40", "30"), ("40.0", "30.0"), ("0", "0"), ("", ""))),
        *(
            (width, height, False)
            for width, height in (("30", "40"), ("40", ""), ("40.5", "30"), ("wide", "30"))
        ),
    ],
)
def test_stated_size(make_voc, width, height, fits):
    root = make_voc({"a": [CAT]})
    file = root / "Annotations" / "a.xml"
    text = file.read_text().replace("<width>40", f"<width>{width}").replace("<height>30", f"<height>{height}")
    file.write_text(text)
    report = load_voc(root).report
    assert report.faults == ({} if fits else {"annotation for another image size, used unchanged": 1})
    assert bool(report.unrotated) == (width == "30")


def test_images_that_are_named_like_lines_of_a_list_of_one_class(make_voc):
    images = {"frame 0": [CAT], "frame 1": [DOG], "a": [], "b": []}
    root = make_voc(images, train=["frame 0", "frame 1"], val=["a", "b"], cat_val=["a 1", "b -1"])
    assert dataset_splits(root) == ["train", "val"]
    assert [record.name for record in load_voc(root, "train").records] == ["frame 0.jpg", "frame 1.jpg"]


def test_without_split_all_images_are_read_by_name(make_voc):
    data = load_voc(make_voc({"b": [CAT], "a": [DOG], "c": [CAT]}))
    assert [record.name for record in data.records] == ["a.jpg", "b.jpg", "c.jpg"]


def test_given_categories_keep_their_order_and_ids(make_voc):
    categories = Categories(("dog", "cat", "parrot"), (5, 3, 9))
    data = load_voc(make_voc({"a": [CAT, DOG]}), categories=categories)
    assert data[0][1]["labels"].tolist() == [1, 0]
    assert [a["category_id"] for a in data.coco_ground_truth()["annotations"]] == [3, 5]


@pytest.mark.parametrize("name", ["a.JPG", "a.jpeg", "a.png", "a.webp"])
def test_image_is_found_by_stem(make_voc, name):
    root = make_voc({"a": [CAT]})
    (root / "JPEGImages" / "a.jpg").unlink()
    Image.new("RGB", (40, 30)).save(root / "JPEGImages" / name)
    assert load_voc(root)[0][0].shape == (3, 30, 40)


@pytest.mark.parametrize(
    ("box", "fault", "kept"),
    [
        ((5, 6, 5, 9), "without area", None),
        ((9, 6, 5, 9), "without area", None),
        (("nan", 6, 5, 9), "NaN or infinite", None),
        ((1, 2, "inf", 20), "NaN or infinite", None),
        ((5, 6, "5.0000000001", 9), "without area", None),
        ((1, 2, 1e300, 20), "NaN or infinite", None),
        ((40, 2, 50, 20), "box outside the image", None),
        ((-9, -9, -1, -1), "box outside the image", None),
        ((-0.06, 2, 30, 20), "partly outside the image", [0, 2, 30, 20]),
        ((-1, 2, 41, 20), "partly outside the image", [0, 2, 40, 20]),
        (("one", 2, 30, 20), "not four numbers", None),
        (("", 2, 30, 20), "not four numbers", None),
    ],
)
def test_invalid_box_is_skipped_or_an_error(make_voc, box, fault, kept):
    root = make_voc({"a": [DOG, ("cat", box), DOG]})
    data = load_voc(root)
    boxes = data[0][1]["boxes"].tolist()
    assert boxes == [[0, 0, 40, 30], *([kept] if kept else []), [0, 0, 40, 30]]
    assert list(data.report.faults.values()) == [1]
    report = str(data.report)
    assert fault in report
    assert str(root / "Annotations" / "a.xml") in report
    assert "cat [" in report

    message = error_line(lambda: load_voc(root, strict=True))
    assert fault in message
    assert message.startswith(str(root / "Annotations" / "a.xml"))


def test_rounding_of_coordinates_is_not_a_fault(make_voc):
    data = load_voc(make_voc({"a": [("cat", (-0.04, -0.001, 40.04, 30.001))]}), strict=True)
    assert data.records[0].boxes.tolist() == [[0, 0, 40, 30]]


def test_report_lists_the_first_faults_and_counts_the_others(make_voc):
    report = load_voc(make_voc({f"{i}": [DOG, ("cat", (i, 0, i, 9))] for i in range(9)})).report
    assert report.faults == {"box without area, skipped": 9}
    text = str(report)
    assert "\n" not in text
    assert "2.xml: cat [2, 0, 2, 9] in 40x30 and 6 more" in text
    assert "3.xml" not in text


def test_annotation_of_another_size_is_reported(make_voc):
    root = make_voc({"a": [CAT]})
    file = root / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace("<width>40", "<width>80").replace("<height>30", "<height>60"))
    assert "80x60, but a.jpg has 40x30 pixels" in str(load_voc(root).report)
    assert "80x60" in error_line(lambda: load_voc(root, strict=True))


def test_unknown_class(make_voc):
    root = make_voc({"a": [("dgo", (1, 2, 3, 4))]})
    message = error_line(lambda: load_voc(root, categories=Categories(("cat", "dog"))))
    assert message.startswith(f"{root / 'Annotations' / 'a.xml'}: unknown class 'dgo'; did you mean 'dog'?")


def test_unknown_split_lists_the_others(make_voc):
    root = make_voc({"a": [CAT]}, train=["a"], val=["a"])
    message = error_line(lambda: load_voc(root, "vall"))
    assert "vall.txt: unknown split; this dataset has" in message
    assert "train, val" in message


def test_empty_split(make_voc):
    assert "the split is empty" in error_line(lambda: load_voc(make_voc({"a": [CAT]}, train=[]), "train"))


def test_repeated_line_of_a_split_counts_once(make_voc):
    assert len(load_voc(make_voc({"a": [CAT]}, train=["a", "", " a "]), "train")) == 1


def test_annotation_without_image(make_voc):
    root = make_voc({"a": [CAT], "b": [CAT]}, train=["a"])
    (root / "JPEGImages" / "b.jpg").unlink()
    assert "b.xml: image b (.jpg" in error_line(lambda: load_voc(root))
    assert len(load_voc(root, "train")) == 1  # it does not need b


def test_image_without_annotation(make_voc):
    root = make_voc({"a": [CAT], "b": [CAT]}, train=["a"])
    (root / "Annotations" / "b.xml").unlink()
    message = error_line(lambda: load_voc(root))
    assert message.startswith(f"{root / 'JPEGImages' / 'b.jpg'}: has no annotation")
    assert len(load_voc(root, "train")) == 1


def test_two_images_of_one_stem(make_voc):
    root = make_voc({"a": [CAT]})
    Image.new("RGB", (40, 30)).save(root / "JPEGImages" / "a.png")
    assert "same stem as a.jpg" in error_line(lambda: load_voc(root))


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is an empty file"), (b"hello", "is not an image"), (b"\xff\xd8", "is not an image")],
)
def test_unreadable_image_is_found_at_load(make_voc, content, message):
    root = make_voc({"a": [CAT]})
    file = root / "JPEGImages" / "a.jpg"
    file.write_bytes(content)
    assert error_line(lambda: load_voc(root)).startswith(f"{file}: {message}")


@pytest.mark.parametrize(
    "text", ["", "<annotation>", "hello", '<?xml version="1.0" encoding="no-such"?><a/>']
)
def test_invalid_xml(make_voc, text):
    root = make_voc({"a": [CAT]})
    file = root / "Annotations" / "a.xml"
    file.write_text(text)
    assert error_line(lambda: load_voc(root)).startswith(f"{file}: is not valid XML")


def test_object_without_name(make_voc):
    root = make_voc({"a": [("", (1, 2, 3, 4))]})
    assert "a.xml: an object has no name" in error_line(lambda: load_voc(root))


def test_no_object_at_all(make_voc):
    root = make_voc({"a": []})
    assert "has an object" in error_line(lambda: load_voc(root))
    assert len(load_voc(root, categories=Categories(("cat",)))) == 1


def test_no_object_that_can_be_used(make_voc):
    message = error_line(lambda: load_voc(make_voc({"a": [("cat", ("1,5", 2, 30, 20))]})))
    assert "has an object that can be used (box that is not four numbers, skipped)" in message


def test_empty_folders(make_voc, tmp_path):
    assert "contains no images (" in error_line(lambda: load_voc(make_voc({})))
    assert "has no folder Annotations" in error_line(lambda: load_voc(tmp_path))


def test_load_dataset_recognizes_voc(make_voc):
    assert len(load_dataset(make_voc({"a": [CAT]}, train=["a"]), "train")) == 1


def test_error_of_load_dataset_lists_the_formats(tmp_path):
    (tmp_path / "images").mkdir()
    message = error_line(lambda: load_dataset(tmp_path))
    assert "VOC: folders Annotations and JPEGImages" in message
    assert "it contains images" in message
    assert "does not exist; give the folder of a dataset" in error_line(
        lambda: load_dataset(tmp_path / "absent")
    )


def test_bccd(bccd):
    train, test = load_voc(bccd, "trainval"), load_voc(bccd, "test")
    assert (len(train), len(test), len(load_voc(bccd))) == (292, 72, 364)
    assert train.categories == test.categories == Categories(("Platelets", "RBC", "WBC"))
    assert (train.report.boxes, test.report.boxes) == (3941, 945)
    assert train.report.faults == {"box without area, skipped": 2}
    assert "BloodImage_00338.xml: RBC [504, 337, 504, 337]" in str(train.report)
    assert "BloodImage_00343.xml: RBC [181, 329, 181, 329]" in str(train.report)
    assert test.report.faults == {}
    assert "BloodImage_00338.xml" in error_line(lambda: load_voc(bccd, "trainval", strict=True))
    image, target = train[0]
    assert image.shape == (3, 480, 640)
    assert target["boxes"][0].tolist() == [260, 177, 491, 376]
    assert target["boxes"].isfinite().all()
