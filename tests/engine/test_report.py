"""The report: what it contains, and how it looks in a real browser."""

from __future__ import annotations

import json
import re
import shlex

import numpy as np
import pytest

pytest.importorskip("jsonargparse")

from fcos_fast.cli.detect import DetectOptions
from fcos_fast.cli.options import parse_options
from fcos_fast.data import Categories, DetectionDataset, Report
from fcos_fast.data.dataset import Record
from fcos_fast.engine.average_precision import average_precision
from fcos_fast.engine.plots import Plot
from fcos_fast.engine.report import score_option, window, write_report
from tests.engine.browser import opened

LONG = "a class whose name has no end and no-place-to-break-" + "x" * 40
METRICS = """epoch,lr,loss,loss_classification,loss_bbox_ctrness,images_per_second,seconds,ap,ap50,ap75
1,0.001,2.0,1.3,0.7,9,10,,,
2,0.002,1.0,0.35,0.65,9,10,0.5,0.8,0.6
"""


def evaluation(num_classes: int, images: int = 3):
    """A dataset of many classes and detections with mistakes of every kind."""
    rng = np.random.default_rng(0)
    names = [f"class {i}" for i in range(num_classes)]
    names[0], names[1] = LONG, "<b>$\\alpha$</b>_"
    records, detections = [], []
    for i in range(images):
        n = 2 * num_classes
        corner, side = rng.random((n, 2)) * 200, rng.random((n, 2)) * 60 + 20
        boxes = np.concatenate([corner, corner + side], axis=1).astype(np.float32)
        labels = np.arange(n) % num_classes
        pixels = np.broadcast_to(np.linspace(0, 255, 280, dtype=np.uint8), (3, 280, 280))
        records.append(Record(f"{'long' * 20}{i}.jpg", (280, 280), boxes, labels, np.zeros(n, bool), pixels))
        shift = np.where(rng.random((n, 1)) < 0.3, 12, 1).astype(np.float32)
        wrong = np.where(rng.random(n) < 0.2, (labels + 1) % num_classes, labels)
        kept = rng.random(n) < 0.8
        scores = rng.random(n).astype(np.float32)
        detections.append({"boxes": (boxes + shift)[kept], "labels": wrong[kept], "scores": scores[kept]})
    report = Report("data, split val")
    report.add("box without area, skipped", "a.xml", "[1, 1, 1, 5]")
    dataset = DetectionDataset(records, Categories(tuple(names)), report)
    return dataset, detections, average_precision(dataset.coco_ground_truth(), detections, dataset.categories)


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of many classes, long names and every kind of mistake."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "metrics.csv").write_text(METRICS)
    dataset, detections, result = evaluation(num_classes=20)
    texts = {"Configuration": "model:\n  a: <b>\n" + "  long: " + "y" * 300}
    return write_report(
        folder, "A <title> " + LONG, dataset, detections, result, texts, about="FCOS on a; cpu"
    )


def test_everything_is_in_one_small_page(report):
    text = report.read_text(encoding="utf-8")
    assert not re.search(
        r"https?:|src=\"(?!data:)|url\((?!#)|<script", text
    )  # no external resources, no script
    assert "A &lt;title&gt;" in text
    assert "a: &lt;b&gt;" in text
    assert "box without area, skipped" in text
    assert "&lt;b&gt;$\\alpha$&lt;/b&gt;_" in text
    assert report.stat().st_size < 2_000_000
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    headings = re.findall(r"<h2[^>]*>([^<]*)", text)
    assert headings == [
        *("Classes", "Where precision is lost", "Images", "Worst images", "Curves", "Confusion matrix"),
        *("Sizes and shapes", "Training", "Data", "Configuration"),
    ]
    for name in ("sheet.png", "curves.png", "analysis.json"):
        assert (report.parent / name).is_file()


def test_everything_has_words_for_those_who_cannot_see_it(report):
    text = report.read_text(encoding="utf-8")
    for image in re.findall(r"<img [^>]*>", text):
        assert re.search(r'alt="[^"]{8,}"', image), image[-80:]
    assert text.count("<svg") == text.count('role="img" aria-label=') == 6
    assert text.count("<table") == text.count("<caption") >= 5
    assert text.count("<th scope=") == len(re.findall(r"<th[ >]", text))
    assert [len(level) for level in re.findall(r"<h(1)|<h(2)|<h(3)", text)]
    assert '<html lang="en">' in text


def test_page_in_a_browser(report, tmp_path):
    with opened(report, width=360, dark=True) as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert max(map(int, re.findall(r"\d+", background))) < 64
        images = page.evaluate(
            "[...document.images].map(i => [i.complete && i.naturalWidth > 0, i.clientWidth])"
        )
        assert len(images) >= 8
        assert all(loaded and width <= 360 for loaded, width in images)
        fills = page.evaluate("[...document.querySelectorAll('svg text')].map(t => getComputedStyle(t).fill)")
        assert fills
        assert min(int(n) for fill in set(fills) for n in re.findall(r"\d+", fill)[:3]) > 180
        sizes = page.evaluate(
            "[...document.querySelectorAll('svg')].map(s => 10 * s.clientWidth / s.viewBox.baseVal.width)"
        )
        assert min(sizes) > 9  # pixels of the text
        page.get_by_text("Show configuration").click()
        assert page.locator("pre", has_text="yyy").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        page.emulate_media(color_scheme="light")
        fills = page.evaluate("[...document.querySelectorAll('svg text')].map(t => getComputedStyle(t).fill)")
        assert max(int(n) for fill in set(fills) for n in re.findall(r"\d+", fill)[:3]) < 64


def test_curves_have_contrast_in_both_modes():
    from fcos_fast.engine.plots import COLORS

    def luminance(color):
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return np.dot(linear, [0.2126, 0.7152, 0.0722])

    for color in COLORS:
        for background in ("#ffffff", "#14171a"):
            low, high = sorted((luminance(color), luminance(background)))
            assert (high + 0.05) / (low + 0.05) >= 3, (color, background)


def test_curves_have_no_more_digits_than_a_screen_shows():
    svg = Plot("t", "x", "y", {"a": ([0, 1 / 3, 1], [0, 1 / 7, 1])}).svg()
    paths = re.findall(r' d="([^"]*)"', svg)
    assert any(re.search(r"\d\.\d L ", path) for path in paths)
    assert not re.search(r"\.\d\d", "".join(paths))


def test_legend_shows_names_as_they_are():
    svg = Plot("t", "x", "y", {"_a": ([0, 1], [0, 1]), "$b_1$": ([0, 1], [1, 0]), "<c>": ([0], [1])}).svg()
    texts = [text.strip() for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]
    assert {"_a", "$b_1$", "&lt;c&gt;"} <= set(texts)


@pytest.mark.filterwarnings("error")
def test_names_in_any_script_stay_text():
    assert "猫" in Plot("t", "x", "y", {"猫": ([0, 1], [0, 1]), "собака": ([0, 1], [1, 0])}).svg()


def test_detect_accepts_the_thresholds_of_the_page(report):
    """The command of the page, read as a shell and the subcommand read it."""
    text = report.read_text(encoding="utf-8")
    shown = re.search(r"fcos-fast detect ([^\n]*?) \.\.\.</pre>", text)[1]
    for entity, character in (("&#x27;", "'"), ("&quot;", '"'), ("&lt;", "<"), ("&gt;", ">"), ("&amp;", "&")):
        shown = shown.replace(entity, character)
    words = ["--checkpoint", "x", *shlex.split(shown), "a.jpg"]
    options = parse_options(DetectOptions, "detect", words, positional=("sources", ""))
    analysis = json.loads((report.parent / "analysis.json").read_text())
    assert options.score_threshold == analysis["thresholds"]
    assert len(analysis["thresholds"]) == len(analysis["classes"])


@pytest.mark.parametrize("name", ["null", "1", "a: b, {c}", "é\u202e'\"", "two\nlines", "#", "*x"])
def test_any_class_name_has_a_threshold(name):
    words = ["--checkpoint", "x", "--score_threshold", score_option({name: 0.25}), "a.jpg"]
    options = parse_options(DetectOptions, "detect", words, positional=("sources", ""))
    assert options.score_threshold == {name: 0.25}


def test_confusion_matrix_of_many_classes_shows_the_most_confused(report):
    text = report.read_text(encoding="utf-8")
    matrix = text[text.index('id="confusion-matrix"') : text.index('id="sizes-and-shapes"')]
    assert matrix.count("<tr>") == 1 + 15 + 1
    assert "The 15 of 20 classes with the most errors." in matrix
    assert "<details><summary>To detect with these thresholds</summary><pre>fcos-fast detect" in text


@pytest.mark.parametrize(
    ("box", "size"),
    [((10, 10, 20, 20), (640, 480)), ((0, 0, 640, 480), (640, 480)), ((600, 470, 640, 480), (640, 480)),
     ((0, 0, 1, 1), (1, 1)), ((0, 0, 5, 900), (5, 900))],
)  # fmt: skip
def test_window_contains_the_box_and_stays_in_the_image(box, size):
    x1, y1, x2, y2 = window(box, size)
    assert 0 <= x1 <= box[0] < box[2] <= x2 <= size[0]
    assert 0 <= y1 <= box[1] < box[3] <= y2 <= size[1]


def test_report_without_anything(tmp_path):
    """An image without objects, in which nothing is detected."""
    empty = np.zeros((0, 4), np.float32)
    record = Record(
        "a.jpg", (32, 32), empty, np.zeros(0, int), np.zeros(0, bool), np.zeros((3, 32, 32), np.uint8)
    )
    dataset = DetectionDataset([record], Categories(("a",)))
    detections = [{"boxes": empty, "labels": np.zeros(0, int), "scores": np.zeros(0)}]
    result = average_precision(dataset.coco_ground_truth(), detections, dataset.categories)
    text = write_report(tmp_path, "t", dataset, detections, result, {}).read_text(encoding="utf-8")
    assert "No object is missed, and no detection is wrong." in text
    assert "nan" not in text
