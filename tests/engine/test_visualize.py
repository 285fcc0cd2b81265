"""Drawn boxes, sheets, curves and reports."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from fcos_fast.engine.report import plot_curves, write_report
from fcos_fast.visualize import class_color, draw_boxes, sheet, to_pil


def test_box_is_drawn_in_the_color_of_its_class():
    image = torch.zeros(3, 100, 160, dtype=torch.uint8)
    boxes = torch.tensor([[40.0, 50.0, 90.0, 80.0]])
    drawn = np.asarray(draw_boxes(image, boxes, torch.tensor([1]), ("cat", "dog")))
    assert drawn.shape == (100, 160, 3)
    for y, x in ((50, 60), (80, 60), (65, 40), (65, 90)):
        assert tuple(drawn[y, x]) == class_color(1)
    assert not drawn[60:75, 45:85].any()
    assert not drawn[90:, :].any()


def test_scale_enlarges_image_and_boxes():
    image = torch.zeros(3, 20, 30)
    drawn = np.asarray(
        draw_boxes(image, torch.tensor([[10.0, 10.0, 20.0, 15.0]]), torch.tensor([0]), ("a",), scale=4)
    )
    assert drawn.shape == (80, 120, 3)
    assert tuple(drawn[60, 60]) == class_color(0)  # the lower side


def test_colors_of_many_classes_differ():
    assert len({class_color(label) for label in range(90)}) == 90


def test_no_boxes_and_boxes_outside_the_image():
    image = torch.full((3, 32, 32), 7, dtype=torch.uint8)
    empty = draw_boxes(image, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), (), torch.zeros(0))
    assert (np.asarray(empty) == 7).all()
    draw_boxes(image, torch.tensor([[-9.0, -9.0, 99.0, 99.0]]), torch.tensor([0]), ("a",))


def test_float_and_integer_images_are_the_same_image():
    image = torch.arange(3 * 8 * 9, dtype=torch.uint8).reshape(3, 8, 9)
    assert (np.asarray(to_pil(image)) == np.asarray(to_pil(image / 255))).all()
    with pytest.raises(ValueError, match=r"shape \(2, 8, 9\)"):
        to_pil(image[:2])


def test_sheet_has_a_pair_per_image():
    images = [torch.zeros(3, 30, 40), torch.ones(3, 50, 40), torch.zeros(3, 30, 40)]
    target = {"boxes": torch.tensor([[2.0, 2.0, 20.0, 20.0]]), "labels": torch.tensor([0])}
    detection = target | {"scores": torch.tensor([0.2])}
    page = sheet(images, [target] * 3, [detection] * 3, ("a",), columns=2, width=80)
    assert page.width == 2 * (2 * 80 + 3 * 8)
    assert page.height == 28 + (100 + 8) + (60 + 8)
    with pytest.raises(ValueError, match="no images"):
        sheet([], [], [], ())


@pytest.mark.parametrize("size", [(2000, 2), (2, 2000), (1, 100_000), (100_000, 1)])
def test_sheet_of_a_strip_is_bounded_on_both_sides(size):
    target = {"boxes": torch.tensor([[0.0, 0.0, 1.0, 1.0]]), "labels": torch.tensor([0])}
    page = sheet([torch.zeros(3, *size)], [target], [target | {"scores": torch.tensor([0.9])}], ("a",))
    assert page.width == 2 * 400 + 3 * 8
    assert page.height <= 28 + 800 + 8


def test_curves_of_missing_values():
    rows = [{"epoch": 1, "loss": 2.0, "lr": 0.1}, {"epoch": 2, "loss": 1.0, "ap": 0.5, "lr": 0.1}]
    assert plot_curves(rows).size == (1200, 360)


def test_report_is_one_page_with_everything_in_it(whole_run, tmp_path):
    _, outcome = whole_run
    (tmp_path / "metrics.csv").write_bytes((outcome.folder / "metrics.csv").read_bytes())
    page = write_report(
        tmp_path, "A <title>", outcome.val_set, outcome.detections, outcome.result, {"Notes": "a < b"}
    )
    text = page.read_text(encoding="utf-8")
    assert "A &lt;title&gt;" in text
    assert "a &lt; b" in text
    assert "circle" in text
    assert "http" not in text  # no external resources
    embedded = re.findall(r"data:image/png;base64,([^']+)'", text)
    sizes = [Image.open(io.BytesIO(base64.b64decode(data))).size for data in embedded]
    files = [tmp_path / "sheet.png", tmp_path / "curves.png"]
    assert sizes == [Image.open(file).size for file in files]
