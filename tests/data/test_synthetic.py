from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest

from fcos_fast.data import (
    DataError,
    Record,
    SyntheticConfig,
    load_voc,
    synthetic,
    synthetic_dataset,
    synthetic_image,
    write_voc,
)
from fcos_fast.data.synthetic import CATEGORIES, SHAPES, shape_mask


def digest(record: Record) -> str:
    parts = (record.image, record.boxes, record.labels)
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


@pytest.fixture(scope="module")
def images() -> list[Record]:
    return [synthetic_image(0, index) for index in range(120)]


def test_same_image_in_another_process_and_order(images):
    program = """
import hashlib
from fcos_fast.data import synthetic_image
for index in (41, 3):
    r = synthetic_image(0, index)
    print(hashlib.sha256(b"".join(p.tobytes() for p in (r.image, r.boxes, r.labels))).hexdigest())
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == [digest(images[41]), digest(images[3])]


def test_images_differ(images):
    assert len({digest(image) for image in images}) == len(images)
    assert digest(synthetic_image(1, 0)) != digest(images[0])


def test_images_are_varied(images):
    labels = np.concatenate([image.labels for image in images])
    boxes = np.concatenate([image.boxes for image in images])
    assert len(SHAPES) >= 5
    assert np.bincount(labels, minlength=len(SHAPES)).min() > 0.1 * len(labels)
    longer = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    assert longer.min() < 20
    assert 180 < longer.max() <= 202
    assert min(len(image.boxes) for image in images) >= 1
    assert max(len(image.boxes) for image in images) >= 7
    brightness = [image.image.mean() for image in images]
    assert np.std(brightness) > 15
    assert any(overlaps(image.boxes) for image in images)


def overlaps(boxes: np.ndarray) -> bool:
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    return (high > low).all(axis=2).sum() > len(boxes)


def test_boxes_are_inside_the_image(images):
    for image in images:
        assert (image.boxes[:, :2] >= 0).all()
        assert (image.boxes[:, 2:] <= image.size).all()
        assert (image.boxes[:, 2:] > image.boxes[:, :2]).all()


def test_boxes_are_tight_and_shapes_visible(monkeypatch):
    """Paint each shape as one bit on black, so that it is visible alone and under the others."""
    bits = []

    def paint(rng, canvas, mask):
        bits.append(1 << len(bits))
        canvas += bits[-1] * (mask > 0)

    monkeypatch.setattr(
        synthetic, "_background", lambda rng, height, width: np.zeros((1, height, width), int)
    )
    monkeypatch.setattr(synthetic, "_expose", lambda rng, canvas: canvas)
    monkeypatch.setattr(synthetic, "_paint", paint)
    for index in range(100):
        bits.clear()
        image = synthetic_image(0, index)
        assert len(bits) == len(image.boxes)
        for bit, box in zip(bits, image.boxes, strict=True):
            alone = image.image[0] & bit > 0
            ys, xs = np.nonzero(alone)
            assert box.tolist() == [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
            seen = alone & (image.image[0] < 2 * bit)  # not covered by later shapes
            assert seen.sum() >= SyntheticConfig().min_visible * alone.sum()


@pytest.mark.parametrize("size", [16, 37.5, 200])
@pytest.mark.parametrize("name", SHAPES)
def test_mask_has_the_requested_size(name, size):
    for seed in range(5):
        mask = shape_mask(np.random.default_rng(seed), name, size)
        assert size - 1 <= max(mask.shape) <= size + 2
        for border in (mask[0], mask[-1], mask[:, 0], mask[:, -1]):
            assert border.any()


def test_masks_are_the_shapes():
    """The fraction of the bounding box that upright shapes cover, from their geometry."""
    star = 10 * 0.5 * 0.42 * np.sin(np.pi / 5) / (2 * np.sin(2 * np.pi / 5) * (1 + np.cos(np.pi / 5)))
    expected = {
        "circle": np.pi / 4,
        "cross": 1 - (1 - 0.36) ** 2,
        "ring": np.pi / 4 * (1 - 0.55**2),
        "square": 0.5,  # on its corner
        "star": star,
        "triangle": 0.5,
    }
    for name, part in expected.items():
        mask = shape_mask(Upright(), name, 150) / 255
        assert mask.mean() == pytest.approx(part, rel=0.03), name


class Upright:
    """A generator that neither rotates nor flattens."""

    def uniform(self, low: float, high: float, size: int | None = None) -> float | np.ndarray:
        return {(0, 2 * np.pi): 0.0, (0.75, 1.0): 1.0, (0, 1): np.zeros(2)}[low, high]


def test_dataset_contains_the_images(images):
    data = synthetic_dataset(3, seed=0, first=10)
    assert [digest(record) for record in data.records] == [digest(image) for image in images[10:13]]
    image, target = data[1]
    assert image.shape == (3, 240, 320)
    assert target["boxes"].shape == (len(target["labels"]), 4)
    assert data.categories == CATEGORIES


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_written_folder_reads_back(tmp_path, suffix):
    root = tmp_path / "new" / "shapes"
    write_voc(root, {"train": 5, "test": 3}, seed=4, suffix=suffix)
    train = load_voc(root, "train", CATEGORIES)
    test = load_voc(root, "test", CATEGORIES, strict=True)
    assert (len(train), len(test)) == (5, 3)
    for i, (data, index) in enumerate([*((train, k) for k in range(5)), *((test, k) for k in range(3))]):
        drawn = synthetic_image(4, i)
        image, target = data[index]
        assert target["boxes"].tolist() == drawn.boxes.tolist()
        assert target["labels"].tolist() == drawn.labels.tolist()
        error = np.abs(image.numpy().astype(int) - drawn.image)
        assert error.max() == 0 if suffix == ".png" else error.mean() < 8
    assert sorted(path.name for path in root.parent.iterdir()) == ["shapes"]
    with pytest.raises(DataError, match="already exists; remove it"):
        write_voc(root, {"train": 1})


def test_an_unfinished_folder_is_removed(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic, "to_xml", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_voc(tmp_path / "shapes", {"train": 1})
    assert list(tmp_path.iterdir()) == []


def test_other_sizes():
    config = SyntheticConfig(size=(64, 96), object_size=(16, 200), max_objects=3)
    for index in range(20):
        image = synthetic_image(0, index, config)
        assert image.image.shape == (3, 64, 96)
        assert 1 <= len(image.boxes) <= 3
        assert (image.boxes[:, 2:] - image.boxes[:, :2]).max() <= 60
    with pytest.raises(ValueError, match="at least one shape of 16 pixels"):
        SyntheticConfig(size=(8, 300))
    with pytest.raises(ValueError, match="expected 1 <= smallest <= largest"):
        SyntheticConfig(object_size=(30, 20))
