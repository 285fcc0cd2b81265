from __future__ import annotations

import dataclasses

import pytest
import torch

from fcos_fast.models import PRESETS, FCOSConfig
from fcos_fast.models.transform import Transform, scale_boxes

SIZES = [(37, 53), (64, 64), (101, 20), (100, 133)]


def _theirs(torchvision, config: FCOSConfig):
    min_size = config.min_size if isinstance(config.min_size, int) else list(config.min_size)
    return torchvision.models.detection.transform.GeneralizedRCNNTransform(
        min_size, config.max_size, list(config.image_mean), list(config.image_std)
    )


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("min_size", "max_size"), [(64, 100), (50, 60), ((40, 56, 80), 120)])
def test_bit_identical_to_torchvision(min_size, max_size, training, torchvision):
    config = dataclasses.replace(PRESETS["torchvision"], min_size=min_size, max_size=max_size)
    ours, theirs = Transform(config).train(training), _theirs(torchvision, config).train(training)
    images = [torch.rand(3, *size) for size in SIZES]
    boxes = [torch.rand(4, 4) * 30 for _ in SIZES]
    torch.manual_seed(5)  # each image draws one of several sizes
    expected, targets = theirs(images, [{"boxes": b} for b in boxes])
    torch.manual_seed(5)
    small = [ours(image) for image in images]
    batch = ours.batch(small)
    assert batch.tensor.equal(expected.tensors)
    assert batch.sizes == expected.image_sizes
    for b, target, size, new in zip(boxes, targets, SIZES, batch.sizes, strict=True):
        assert scale_boxes(b, size, new).equal(target["boxes"])


def test_padded_size_without_padding():
    transform = Transform(dataclasses.replace(PRESETS["torchvision"], min_size=None))
    assert transform.batch([torch.rand(3, 64, 96)] * 2).padded_size == (64, 96)
    assert transform.batch([torch.rand(3, 64, 97), torch.rand(3, 1, 1)]).padded_size == (64, 128)


def test_bytes_equal_floats():
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    for preset in PRESETS.values():
        transform = Transform(dataclasses.replace(preset, min_size=64))
        torch.testing.assert_close(transform(image), transform(image / 255))


def test_official_pixels_are_bgr_bytes_minus_the_mean():
    image = torch.randint(0, 256, (3, 4, 5), dtype=torch.uint8)
    out = Transform(dataclasses.replace(PRESETS["official-improved"], min_size=None))(image)
    expected = image[[2, 1, 0]].double() - torch.tensor([102.9801, 115.9465, 122.7717]).view(3, 1, 1)
    torch.testing.assert_close(out, expected.float(), atol=1e-4, rtol=0)


def test_a_sliver_keeps_one_pixel():
    transform = Transform(dataclasses.replace(PRESETS["torchvision"], min_size=64, max_size=100))
    assert transform(torch.rand(3, 1, 500)).shape == (3, 1, 100)


def test_groups():
    images = [torch.rand(3, *size) for size in [(60, 90), (33, 96), (64, 97), (64, 65)]]
    config = dataclasses.replace(PRESETS["official-improved"], min_size=None)
    assert Transform(config).groups(images) == [[0, 1, 3], [2]]
    assert Transform(dataclasses.replace(config, batching="pad")).groups(images) == [[0, 1, 2, 3]]
