from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from fcos_fast.data import AugmentConfig, AugmentedDataset, Categories, DetectionDataset, Record, load_voc

STILL = {"horizontal_flip": 0.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
EVERYTHING = AugmentConfig((48, 64), (0.5, 2.0), vertical_flip=0.5, iou_crop=0.5, hue=0.1)


def rectangles(seed: int, width: int = 60, height: int = 40, count: int = 6) -> DetectionDataset:
    """Images of one bright rectangle on black, whose box follows from the pixels."""
    rng = np.random.default_rng(seed)
    records = []
    for i in range(count):
        x1, x2 = np.sort(rng.choice(width + 1, 2, replace=False))
        y1, y2 = np.sort(rng.choice(height + 1, 2, replace=False))
        image = np.zeros((3, height, width), np.uint8)
        image[:, y1:y2, x1:x2] = 255
        box = np.array([[x1, y1, x2, y2]], np.float32)
        records.append(Record(f"{i}", (width, height), box, np.array([i]), np.array([i % 2 == 0]), image))
    return DetectionDataset(records, Categories(tuple("abcdef"[:count])))


def bright_box(image: torch.Tensor, threshold: int = 128) -> list[int]:
    ys, xs = torch.nonzero(image[0] >= threshold, as_tuple=True)
    return [xs.min().item(), ys.min().item(), xs.max().item() + 1, ys.max().item() + 1]


def same(a: tuple, b: tuple) -> bool:
    return torch.equal(a[0], b[0]) and all(
        torch.equal(a[1][k], b[1][k]) for k in ("boxes", "labels", "ignore")
    )


@pytest.mark.parametrize(
    ("flip", "axes"), [("horizontal_flip", (2,)), ("vertical_flip", (1,)), (None, ()), ("both", (1, 2))]
)
def test_flips_against_brute_force(flip, axes):
    flips = {"horizontal_flip": 1.0, "vertical_flip": 1.0} if flip == "both" else {flip: 1.0} if flip else {}
    data = rectangles(0)
    augmented = AugmentedDataset(data, AugmentConfig(**(STILL | flips)))
    for i in range(len(data)):
        image, target = augmented[0, i]
        assert torch.equal(image, data[i][0].flip(axes))
        assert target["boxes"].tolist() == [bright_box(image)]


@pytest.mark.parametrize("size", [(40, 60), (20, 30), (80, 120), (60, 60), (100, 60)])
@pytest.mark.parametrize("scale", [(1.0, 1.0), (0.5, 1.0), (1.0, 2.0)])
def test_box_stays_on_its_object(size, scale):
    data = rectangles(1)
    augmented = AugmentedDataset(data, AugmentConfig(size, scale, **(STILL | {"horizontal_flip": 0.5})))
    seen = 0
    for epoch in range(6):
        for i in range(len(data)):
            image, target = augmented[epoch, i]
            assert image.shape == (3, *size)
            assert image.is_contiguous()
            visible = image.where((image == image[0]).all(0), torch.zeros_like(image))  # without the padding
            for box in target["boxes"]:
                if (box[2:] - box[:2]).min() > 4:
                    expected = torch.tensor(bright_box(visible), dtype=torch.float32)
                    assert torch.allclose(box, expected, atol=1.5)
                    seen += 1
    assert seen > 10


def test_aspect_ratio_is_kept():
    data = rectangles(2)
    factors = []
    for epoch in range(20):
        _, target = AugmentedDataset(data, AugmentConfig((240, 240), (0.5, 1.0), **STILL))[epoch, 3]
        before, after = data[3][1]["boxes"][0], target["boxes"][0]
        ratio = (after[2:] - after[:2]) / (before[2:] - before[:2])
        assert ratio[0] == pytest.approx(ratio[1].item(), rel=0.02)
        factors.append(ratio[0].item())
    assert 2.0 <= min(factors) < 2.4  # 240 / 60 = 4 fits
    assert 3.6 < max(factors) <= 4.0


@pytest.mark.parametrize("iou_crop", [0.0, 1.0])
def test_boxes_are_inside_and_keep_their_labels(iou_crop):
    rng = np.random.default_rng(3)
    shapes = np.array([[4, 4], [12, 4], [4, 12]])  # by class, so that a wrong label is noticed
    labels = rng.integers(0, 3, 30)
    corners = rng.uniform(1, 47, (30, 2))
    boxes = np.concatenate([corners, corners + shapes[labels]], axis=1).astype(np.float32)
    record = Record("x", (60, 60), boxes, labels, labels == 1, np.zeros((3, 60, 60), np.uint8))
    data = DetectionDataset([record], Categories(("small", "wide", "tall")))
    config = AugmentConfig((64, 64), (0.5, 2.0), vertical_flip=0.5, iou_crop=iou_crop)
    counts = []
    for epoch in range(40):
        target = AugmentedDataset(data, config)[epoch, 0][1]
        kept = target["boxes"]
        counts.append(len(kept))
        assert len(target["labels"]) == len(target["ignore"]) == len(kept)
        assert torch.equal(target["ignore"], target["labels"] == 1)
        assert (kept[:, 2:] - kept[:, :2]).min() >= 1
        assert kept.min() >= 0
        assert kept.max() <= 64
        if not iou_crop:  # boxes that do not touch the border are complete
            whole = ((kept > 0) & (kept < 64)).all(dim=1)
            ratio = (kept[:, 2] - kept[:, 0]) / (kept[:, 3] - kept[:, 1])
            expected = torch.tensor([1.0, 3.0, 1 / 3])[target["labels"]]
            assert torch.allclose(ratio[whole], expected[whole], rtol=0.1)
    assert 1 <= min(counts) < max(counts) == 30


def test_depends_only_on_seed_epoch_and_index():
    data = rectangles(4)
    augmented = AugmentedDataset(data, EVERYTHING, seed=7)
    torch.manual_seed(0)
    first = augmented[3, 2]
    augmented[0, 1]
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert same(augmented[3, 2], first)
    assert torch.equal(torch.get_rng_state(), state)
    assert same(AugmentedDataset(data, EVERYTHING, seed=7)[3, 2], first)
    assert not same(augmented[4, 2], first)
    assert not same(AugmentedDataset(data, EVERYTHING, seed=8)[3, 2], first)


def test_pickling():
    augmented = AugmentedDataset(rectangles(5), EVERYTHING, seed=1)
    assert same(pickle.loads(pickle.dumps(augmented))[2, 3], augmented[2, 3])


def test_image_without_boxes():
    record = Record(
        "x",
        (60, 40),
        np.zeros((0, 4), np.float32),
        np.zeros(0, int),
        np.zeros(0, bool),
        np.zeros((3, 40, 60), np.uint8),
    )
    augmented = AugmentedDataset(DetectionDataset([record], Categories(("a",))), EVERYTHING)
    for epoch in range(5):
        image, target = augmented[epoch, 0]
        assert image.shape == (3, 48, 64)
        assert target["boxes"].shape == (0, 4)
        assert target["labels"].shape == (0,)


def test_color_jitter_changes_the_image_but_no_box(bccd):
    data = load_voc(bccd, "trainval")
    augmented = AugmentedDataset(data, AugmentConfig(horizontal_flip=0.0, hue=0.05))
    means = []
    for epoch in range(8):
        image, target = augmented[epoch, 0]
        assert image.dtype == torch.uint8
        assert torch.equal(target["boxes"], data[0][1]["boxes"])
        means.append(image.float().mean().item())
    assert np.std(means) > 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizontal_flip": 1.5}, r"augment.horizontal_flip=1.5; expected a number from 0 to 1"),
        ({"hue": 0.7}, "augment.hue=0.7; expected a number from 0 to 0.5"),
        (
            {"scale": (2.0, 1.0), "size": (8, 8)},
            r"augment.scale=\(2.0, 1.0\); expected 0 < smallest <= largest",
        ),
        ({"scale": (0.5, 1.0)}, r"augment.scale=\(0.5, 1.0\) without augment.size; give augment.size"),
        ({"size": (0, 8)}, r"augment.size=\(0, 8\); expected \(height, width\) in pixels"),
    ],
)
def test_invalid_settings_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        AugmentConfig(**options)
