"""Drawn boxes, sheets and curves."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fcos_fast.engine.training_curves import plot_curves, training_plots
from fcos_fast.visualize import (
    _font_file,
    class_color,
    draw_boxes,
    draw_marks,
    false_positive,
    labeled,
    missed,
    place_labels,
    sheet,
    to_pil,
    true_positive,
)


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


def test_labels_do_not_overlap_where_boxes_crowd():
    """Twenty boxes that overlap, nested ones and ones at all borders: each label is at its box, none on another."""
    rng = np.random.default_rng(0)
    corner = rng.random((14, 2)) * (500, 340)
    boxes = np.concatenate([corner, corner + 60 + rng.random((14, 2)) * 60], axis=1)
    nested = [[100, 100, 300, 300], [102, 101, 290, 290], [101, 103, 280, 280], [0, 0, 640, 480]]
    boxes = np.concatenate([boxes, nested, [[0, 0, 60, 60], [580, 420, 640, 480]]])
    sizes = np.tile([[46, 13]], (20, 1))
    corners = place_labels(boxes, sizes, (640, 480))
    ends = corners + sizes + 1
    assert (corners >= 0).all()
    assert (ends <= (640, 480)).all()
    for i in range(20):
        gap = np.maximum(corners[i], boxes[i, :2]) - np.minimum(ends[i], boxes[i, 2:])
        assert (gap <= 1).all(), "not at its box"
        for j in range(i):
            low, high = np.maximum(corners[i], corners[j]), np.minimum(ends[i], ends[j])
            assert not (low < high).all(), (i, j)


def test_a_label_is_above_its_box_unless_there_is_no_space():
    above, inside = place_labels(
        np.array([[50.0, 40, 90, 80], [50, 3, 90, 80]]), np.array([[20, 10]] * 2), (200, 100)
    )
    assert above.tolist() == [50, 29]
    assert inside.tolist() == [50, 0]


def drawn_label(text: str) -> np.ndarray:
    return np.asarray(draw_marks(np.zeros((60, 200, 3), np.uint8), [true_positive([5, 20, 190, 55], text)]))


def test_labels_beyond_ascii_can_be_read():
    pytest.importorskip("matplotlib")  # contains a font of Latin, Greek and Cyrillic
    texts = ("ä", "ß", "é", "ж", "ω")
    assert len({drawn_label(text).tobytes() for text in texts}) == len(texts)


def test_labels_without_a_font_are_drawn_all_the_same(monkeypatch):
    monkeypatch.setattr("fcos_fast.visualize._fonts", list)
    _font_file.cache_clear()
    try:
        assert drawn_label("ä").any()
    finally:
        _font_file.cache_clear()


def test_outcomes_differ_in_color_and_line_style():
    image, box = np.full((120, 160, 3), 128, np.uint8), [20, 30, 140, 110]
    colors, shares = [], []
    for mark in (true_positive(box, ""), missed(box, ""), false_positive(box, ""), labeled(box, "")):
        drawn = np.asarray(draw_marks(image, [mark]))
        side = (drawn[31, 24:136] == mark.color).all(axis=1)
        colors.append(mark.color)
        shares.append(round(side.mean(), 1))
        runs = np.diff(np.flatnonzero(np.diff(side)))
        assert (len(runs) > 5) == (mark.style != "solid")
        assert not (drawn[50:90, 40:120] != 128).any()
    assert len(set(colors)) == 4
    assert shares[0] == shares[3] == 1
    assert 0.5 < shares[1] < 0.8
    assert 0.5 < shares[2] < 0.8


def test_sheet_of_outcomes():
    target = {"boxes": np.array([[5, 5, 35, 25]]), "labels": [0], "found": [False]}
    detection = {"boxes": np.array([[5, 5, 35, 25]]), "labels": [1], "scores": [0.9], "correct": [False]}
    page = np.asarray(sheet([np.zeros((40, 40, 3), np.uint8)], [target], [detection], ("a", "b"), width=200))
    for color, columns in (
        (missed([], "").color, slice(8, 208)),
        (false_positive([], "").color, slice(216, 416)),
    ):
        assert (page[28:, columns] == color).all(axis=2).sum() > 100


def test_curves_of_missing_values():
    rows = [{"epoch": 1, "loss": 2.0, "lr": 0.1}, {"epoch": 2, "loss": 1.0, "ap": 0.5, "lr": 0.1}]
    assert plot_curves(rows).size == (1200, 360)


def test_any_class_name_is_that_of_its_curve():
    row = {
        "epoch": 1,
        "ap": 0.5,
        "ap_small": 0.4,
        "ap_wet_floor": 0.3,
        "ap_small (class)": 0.2,
        "ap_loss_ap_x": 0.1,
    }
    panels = {panel.title: panel.lines for panel in training_plots([row])}
    values = {name: y for name, (_, (y,)) in panels["AP per class"].items()}
    assert values == {"wet_floor": 0.3, "small": 0.2, "loss_ap_x": 0.1}


def test_centerness_has_curves_of_its_own():
    rows = [
        {
            "epoch": 1,
            "loss": 2.0,
            "loss_classification": 1.0,
            "loss_bbox_ctrness": 0.7,
            "ap_cat": 0.1,
            "ap_small": 0,
        }
    ]
    rows[0]["loss_bbox_ctrness_floor"] = 0.6
    panels = {panel.title: list(panel.lines) for panel in training_plots(rows)}
    assert panels == {
        "Loss": ["loss", "classification"],
        "Centerness loss": ["bbox_ctrness", "bbox_ctrness at its lowest"],
        "AP per class": ["cat"],
    }
