"""Mosaic, copy-paste and large-scale jitter: boxes stay on their objects, and samples depend on their key alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fcos_fast.data import AugmentConfig, AugmentedDataset, Categories, DetectionDataset, Record, train_loader
from fcos_fast.data.loader import close_mosaic
from fcos_fast.data.mixing import MAX_COVERED, MIN_VISIBLE, covered_by
from fcos_fast.data.transforms import MIN_SIDE, SampleKey
from fcos_fast.models import BatchPacker, FCOSConfig

STILL = {"horizontal_flip": 0.0, "brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
COUNT = 8
WIDTH, HEIGHT = 96, 72


def brightness(label: torch.Tensor | int) -> torch.Tensor | int:
    """The value of the pixels of an object; the background is 0."""
    return 110 + 20 * label


@pytest.fixture(scope="module")
def squares() -> DetectionDataset:
    """Eight images, each with two squares whose brightness is their label's. Those of label 7 are ignored."""
    rng = np.random.default_rng(0)
    records = []
    for i in range(COUNT):
        image = np.zeros((3, HEIGHT, WIDTH), np.uint8)
        # in the two halves, so that they do not overlap
        x, y = rng.integers(4, 20, 2) + np.array([0, 48]), rng.integers(4, 40, 2)
        boxes = np.stack((x, y, x + 24, y + 24), axis=1).astype(np.float32)
        labels = np.array([i, (i + 1) % COUNT])
        for (x1, y1, x2, y2), label in zip(boxes.astype(int), labels, strict=True):
            image[:, y1:y2, x1:x2] = brightness(label)
        records.append(Record(f"{i}", (WIDTH, HEIGHT), boxes, labels, labels == 7, image))
    return DetectionDataset(records, Categories(tuple("abcdefgh")))


def assert_on_objects(image: torch.Tensor, target: dict, least: float) -> None:
    """At least this fraction of the inside of each box is its object."""
    height, width = image.shape[1:]
    for box, label in zip(target["boxes"], target["labels"], strict=True):
        x1, y1, x2, y2 = box.tolist()
        assert 0 <= x1 < x2 <= width
        assert 0 <= y1 < y2 <= height
        # without the edge, which resizing blurs
        inside = image[0, round(y1) + 1 : round(y2) - 1, round(x1) + 1 : round(x2) - 1].float()
        if inside.numel() > 16:
            on_object = (inside - brightness(label)).abs() < 15
            assert on_object.float().mean() >= least


@pytest.mark.parametrize("size", [None, (80, 120), (128, 64)])
def test_mosaic(squares, size):
    augmented = AugmentedDataset(squares, AugmentConfig(size, mosaic=1.0, **STILL))
    labels, counts = set(), []
    for epoch in range(12):
        image, target = augmented[epoch, epoch % COUNT]
        assert image.shape == (3, *(size or (HEIGHT, WIDTH)))
        assert image.dtype == torch.uint8
        assert image.is_contiguous()
        assert torch.equal(target["ignore"], target["labels"] == 7)
        assert target["image_id"] == epoch % COUNT
        assert (target["boxes"][:, 2:] - target["boxes"][:, :2]).min() >= MIN_SIDE
        assert_on_objects(image, target, 0.7)
        counts.append(len(target["labels"]))
        labels.update(target["labels"].tolist())
    assert max(counts) > 4  # of more than two images
    assert len(labels) == COUNT


def test_mosaic_labels_every_visible_object(squares):
    """Pixels of an object outside all boxes belong to a rest that is smaller than ``MIN_VISIBLE``."""
    augmented = AugmentedDataset(squares, AugmentConfig((100, 100), mosaic=1.0, **STILL))
    for index in range(COUNT):
        image, target = augmented[0, index]
        rest = image[0].clone()
        for x1, y1, x2, y2 in target["boxes"].round().int().tolist():
            rest[max(0, y1 - 1) : y2 + 1, max(0, x1 - 1) : x2 + 1] = 0
        padding = (image == image.new_tensor([124, 116, 104])[:, None, None]).all(dim=0)
        objects = (rest > 105) & ~padding
        assert objects.sum() < 4 * MIN_VISIBLE * 24**2


def test_copy_paste(squares):
    augmented = AugmentedDataset(squares, AugmentConfig(copy_paste=1.0, **STILL))
    pasted = 0
    for epoch in range(8):
        for index in range(COUNT):
            image, target = augmented[epoch, index]
            before, own = squares[index]
            assert torch.equal(target["boxes"][:2], own["boxes"])  # those of the image come first, unchanged
            new = {name: target[name][2:] for name in ("boxes", "labels", "ignore")}
            assert not new["ignore"].any()
            assert 7 not in new["labels"]
            assert_on_objects(image, new, 1 - MAX_COVERED - 0.1)
            assert_on_objects(image, own, 1 - MAX_COVERED - 0.1)
            assert torch.equal(image, before) == (len(new["labels"]) == 0)
            pasted += len(new["labels"])
    assert pasted > 20


def test_copy_paste_between_images_of_different_size():
    """An object that is larger than the image is not pasted; nothing leaves the image."""
    rng = np.random.default_rng(1)
    records = []
    for width, height in [(20, 90), (90, 20), (60, 60), (8, 8)]:
        box = np.array([[0.5, 0.5, width - 1.25, height - 0.75]], np.float32)
        image = rng.integers(0, 255, (3, height, width), np.uint8)
        records.append(Record("x", (width, height), box, np.array([0]), np.array([True]), image))
        box = np.array([[1.5, 1, 6.25, 6.75]], np.float32)
        records.append(replace(records[-1], boxes=box, ignore=np.array([False])))
    data = DetectionDataset(records, Categories(("a",)))
    augmented = AugmentedDataset(data, AugmentConfig(copy_paste=1.0, **STILL))
    counts = set()
    for epoch in range(20):
        for index in range(len(data)):
            image, target = augmented[epoch, index]
            assert image.shape == data[index][0].shape
            assert target["boxes"].min() >= 0
            assert (target["boxes"][:, 2:] <= torch.tensor(image.shape[:0:-1])).all()
            counts.add(len(target["boxes"]))
    assert counts == {1, 2}


def test_covered_by():
    box = torch.tensor([0.0, 0, 10, 10])
    others = torch.tensor([[5.0, 5, 15, 15], [20, 20, 30, 30], [2, 2, 4, 4], [0, 0, 10, 40]])
    assert covered_by(box, others).tolist() == [0.25, 0, 1, 0.25]
    assert covered_by(box, others[:0]).shape == (0,)


def test_large_scale_jitter(squares):
    augmented = AugmentedDataset(squares, AugmentConfig((96, 96), (0.1, 2.0), **STILL))
    sides = []
    for epoch in range(20):
        image, target = augmented[epoch, 0]
        assert image.shape == (3, 96, 96)
        assert_on_objects(image, target, 0.7)
        sides += (target["boxes"][:, 2:] - target["boxes"][:, :2]).amax(dim=1).tolist()
    assert min(sides) < 12
    assert max(sides) > 40


def test_mixing_depends_on_the_key_alone(squares):
    config = AugmentConfig((64, 64), (0.5, 1.5), mosaic=0.5, copy_paste=0.5, iou_crop=0.3)
    augmented = AugmentedDataset(squares, config, seed=3)
    image, target = augmented[2, 5]
    augmented[0, 1]
    torch.rand(3)
    state = torch.get_rng_state()
    again, target_again = augmented[2, 5]
    assert torch.equal(image, again)
    assert torch.equal(target["boxes"], target_again["boxes"])
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(augmented[SampleKey(2, 5, repeat=1)][0], image)


def test_workers_mix_like_the_main_process(squares):
    config = AugmentConfig((64, 64), mosaic=0.5, copy_paste=0.5)
    batches = [list(train_loader(squares, 2, config, seed=1, workers=workers)) for workers in (0, 2)]
    for (here, _), (there, _) in zip(*batches, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


def test_close_mosaic(squares):
    config = AugmentConfig(mosaic=1.0, copy_paste=1.0, close_mosaic=2, **STILL)
    loader = train_loader(squares, 2, config)
    close_mosaic(loader, 5)
    changed = [not torch.equal(loader.dataset[epoch, 0][0], squares[0][0]) for epoch in range(5)]
    assert changed == [True, True, True, False, False]
    with pytest.raises(
        ValueError, match=r"augment.mosaic=1.0 in no epoch: the run has 2, .* is 2; give fewer"
    ):
        close_mosaic(loader, 2)


def test_multi_scale_draws_one_factor_per_batch(squares):
    model = FCOSConfig(backbone="resnet18", num_classes=COUNT, min_size=64, max_size=None)
    config = AugmentConfig((64, 96), multi_scale=(0.5, 1.5))
    loader = train_loader(squares, 2, config, packer=BatchPacker(model), seed=2)
    seen = []
    for epoch in range(3):
        loader.batch_sampler.set_epoch(epoch)
        for images, targets in loader:
            assert len(set(images.sizes)) == 1
            height, width = images.sizes[0]
            assert width / height == pytest.approx(1.5, rel=0.05)
            assert targets.boxes.max() <= width
            seen.append(height)
    assert min(seen) < 45
    assert max(seen) > 80
    loader.batch_sampler.set_epoch(0)
    assert [images.sizes[0][0] for images, _ in loader] == seen[:4]
    with pytest.raises(ValueError, match="multi_scale=.* needs a packer"):
        train_loader(squares, 2, config)
