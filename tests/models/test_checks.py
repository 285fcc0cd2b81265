from __future__ import annotations

import pytest
import torch

from fcos_fast.models import fcos

IMAGE = torch.rand(3, 64, 64)
BOX = torch.tensor([[1.0, 2.0, 30.0, 40.0]])
LABEL = torch.tensor([0])


@pytest.fixture(scope="module")
def model():
    return fcos("resnet18", 3, fpn_channels=32, head_channels=64, head_convs=1, min_size=None)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(1, 3, 8, 8), r"images: got a tensor of shape \(1, 3, 8, 8\); expected a list"),
        ([], "images: got an empty list"),
        ([IMAGE, "a.jpg"], r"images\[1\]: got str; expected a tensor"),
        ([torch.rand(8, 8, 3)], r"images\[0\]: got shape \(8, 8, 3\); expected \(3, H, W\)"),
        ([torch.rand(3, 0, 8)], r"images\[0\]: got shape \(3, 0, 8\)"),
        ([IMAGE.long()], r"images\[0\]: got torch.int64; expected uint8, or floating point"),
        ([IMAGE * 255], r"images\[0\]: got values up to 25\d.*: divide by 255, or pass uint8"),
        ([IMAGE.to("meta")], r"images\[0\]: is on meta, but the model is on cpu"),
    ],
)
@pytest.mark.parametrize("training", [True, False])
def test_images(model, images, message, training):
    model.train(training)
    with pytest.raises((TypeError, ValueError), match=message):
        model(images, [{"boxes": BOX, "labels": LABEL}] * len(images))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (None, "targets: got None; training needs"),
        ([], "targets: got 0 for 1 images"),
        ({"boxes": BOX}, "targets: got dict for 1 images"),
        ([{"boxes": BOX}], r"targets\[0\]: expected a dict .* 'labels' is missing"),
        ([(BOX, LABEL)], r"targets\[0\]: expected a dict"),
        ([{"boxes": BOX[0], "labels": LABEL}], r"targets\[0\]\['boxes'\]: got shape \(4,\)"),
        (
            [{"boxes": torch.zeros(0), "labels": LABEL[:0]}],
            r"got shape \(0,\); expected \(N, 4\), also if N is 0",
        ),
        ([{"boxes": BOX, "labels": LABEL[:0]}], r"targets\[0\]\['labels'\]: got shape \(0,\) for 1 boxes"),
        ([{"boxes": BOX.long(), "labels": LABEL}], r"\['boxes'\]: got torch.int64; expected float32"),
        ([{"boxes": BOX, "labels": LABEL.float()}], r"\['labels'\]: got torch.float32; expected int64"),
        ([{"boxes": BOX, "labels": LABEL + 3}], r"\['labels'\]\[0\]: got 3; expected 0 to 2"),
        ([{"boxes": BOX, "labels": LABEL - 1}], r"\['labels'\]\[0\]: got -1; expected 0 to 2"),
        (
            [{"boxes": BOX.flip(1), "labels": LABEL}],
            r"\['boxes'\]\[0\]: got \[40.0, .*\]; expected finite x1 < x2",
        ),
        ([{"boxes": BOX / 0, "labels": LABEL}], r"\['boxes'\]\[0\]: got \[inf, .*\]; expected finite"),
        (
            [{"boxes": BOX * torch.nan, "labels": LABEL}],
            r"\['boxes'\]\[0\]: got \[nan, .*\]; expected finite",
        ),
        ([{"boxes": BOX.to("meta"), "labels": LABEL}], r"\['boxes'\]: is on meta, but the model is on cpu"),
    ],
)
def test_targets(model, targets, message):
    with pytest.raises((TypeError, ValueError), match=message):
        model.train()([torch.rand(3, 64, 64)], targets)


def test_the_invalid_element_is_named(model):
    good = {"boxes": BOX, "labels": LABEL}
    bad = {"boxes": torch.cat((BOX, BOX)), "labels": torch.tensor([1, 7])}
    with pytest.raises(ValueError, match=r"targets\[2\]\['labels'\]\[1\]: got 7"):
        model.train()([torch.rand(3, 64, 64)] * 3, [good, good, bad])
