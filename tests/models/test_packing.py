"""Packed batches train bit-identically to lists of images and targets."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch

from fcos_fast.models import PRESETS, BatchPacker, FCOSConfig, ImageBatch


def samples(*sizes):
    generator = torch.Generator().manual_seed(0)
    targets = [
        {"boxes": torch.tensor([[5.0, 8, 40, 50]]).repeat(b, 1), "labels": torch.full((b,), b % 3)}
        for b in range(len(sizes))
    ]
    images = [torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator) for size in sizes]
    return images, targets


def pack(config: FCOSConfig, images, targets):
    packer = BatchPacker(config)
    return packer.collate([packer.resize(*sample) for sample in zip(images, targets, strict=True)])


PIXELS = {
    name: {
        field: getattr(PRESETS[name], field)
        for field in ("channel_order", "pixel_range", "image_mean", "image_std")
    }
    for name in ("official-improved", "torchvision")
}


@pytest.mark.parametrize("pixels", PIXELS)
@pytest.mark.parametrize(
    ("options", "sizes", "dtype"),
    [
        ({}, [(64, 96), (64, 96)], torch.uint8),
        ({}, [(64, 96), (60, 80), (33, 96)], torch.uint8),
        ({"min_size": 64, "max_size": 96}, [(64, 96), (64, 80)], torch.uint8),
        ({"min_size": 64, "max_size": 96}, [(64, 96), (100, 70)], torch.float32),
    ],
    ids=["one_size", "padded", "nothing_to_resize", "resized"],
)
def test_losses_are_bit_identical_to_lists(small_model, pixels, options, sizes, dtype):
    model = small_model(**{"max_size": None} | PIXELS[pixels] | options).train()
    images, targets = samples(*sizes)
    batch, gt = pack(model.config, images, targets)
    assert batch.tensor.dtype == dtype
    expected_batch, expected_gt = model._pack(images, targets)
    assert torch.equal(model.transform.normalize(batch).tensor, expected_batch.tensor)
    assert torch.equal(gt.boxes[: len(expected_gt.boxes)], expected_gt.boxes)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    expected = model(images, targets)
    model.load_state_dict(before)
    for name, loss in model(batch, gt).items():
        assert torch.equal(loss, expected[name]), name


def test_shapes_repeat():
    """One capacity for any number of boxes up to 16."""
    packer = BatchPacker(FCOSConfig(num_classes=9, min_size=None, max_size=None))
    image, box = torch.zeros(3, 64, 64, dtype=torch.uint8), torch.tensor([[0.0, 0, 9, 9]])
    shapes = set()
    for count in (0, 1, 16):
        target = {"boxes": box.repeat(count, 1), "labels": torch.zeros(count, dtype=torch.int64)}
        shapes.add(packer.collate([(image, target)])[1].boxes.shape)
    assert shapes == {(16, 4)}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            {"boxes": torch.tensor([[5.0, 5, 5, 9]]), "labels": torch.tensor([0])},
            r"targets\[1\]\['boxes'\]\[0\]",
        ),
        ({"boxes": torch.tensor([[5.0, 5, 9, 9]]), "labels": torch.tensor([3])}, "got 3; expected 0 to 2"),
    ],
    ids=["box", "label"],
)
def test_invalid_targets_are_found_on_the_host(target, message):
    images, targets = samples((64, 64), (64, 64))
    with pytest.raises(ValueError, match=message):
        pack(FCOSConfig(num_classes=3, min_size=None, max_size=None), images, [targets[0], target])


def test_packer_can_be_pickled():
    config = FCOSConfig(num_classes=3, min_size=64, max_size=96)
    again = pickle.loads(pickle.dumps(BatchPacker(config)))
    image, target = (x[0] for x in samples((70, 90)))
    assert torch.equal(again.resize(image, target)[0], BatchPacker(config).resize(image, target)[0])


def test_packed_batches_are_only_for_training(small_model):
    model = small_model(max_size=None)
    batch, gt = pack(model.config, *samples((64, 96), (64, 96)))
    with pytest.raises(ValueError, match="ImageBatch in evaluation"):
        model.eval()(batch, gt)
    model.train()
    with pytest.raises(TypeError, match="got NoneType with an ImageBatch"):
        model(batch)
    with pytest.raises(ValueError, match="got the targets of 2 images for 1 images"):
        model(ImageBatch(batch.tensor[:1], batch.sizes[:1]), gt)
    with pytest.raises(ValueError, match="labels: is on meta"):
        model(batch, replace(gt, labels=gt.labels.to("meta")))
