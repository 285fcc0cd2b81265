"""What an exported detector sees is what ``Transform`` shows to the model."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fcos_fast.data import SyntheticConfig
from fcos_fast.data.images import read_pixels
from fcos_fast.data.synthetic import synthetic_image
from fcos_fast.inference.preprocess import batch, resize
from fcos_fast.models import FCOSConfig
from fcos_fast.models.sizes import batches, detection_size
from fcos_fast.models.transform import Transform


@pytest.fixture(scope="module")
def photographs() -> list[np.ndarray]:
    """Photographs of blood cells if there are any, and a generated image with other sides."""
    folder = os.environ.get("FCOS_FAST_BCCD")
    paths = sorted(Path(folder, "JPEGImages").iterdir())[:3] if folder else []
    generated = [
        synthetic_image(0, i, SyntheticConfig(size)).image for i, size in enumerate([(213, 311), (97, 64)])
    ]
    return [*map(read_pixels, paths), *(image.transpose(1, 2, 0) for image in generated)]


@pytest.mark.parametrize("size", [(240, 320), (800, 1066), (333, 500), (214, 311), (50, 700), (1, 1)])
def test_resizing_is_that_of_torch(photographs, size):
    """The largest difference is 1.8e-7, on photographs of 480x640: rounding of the last bit."""
    for photo in photographs:
        image = np.float32(photo) / 255
        tensor = torch.from_numpy(image).permute(2, 0, 1)[None].contiguous()
        expected = F.interpolate(tensor, size=size, mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
        np.testing.assert_allclose(resize(image, size), expected, atol=5e-7, rtol=0)


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
@pytest.mark.parametrize(
    "overrides",
    [
        {"min_size": (200, 240), "max_size": 320},
        {"min_size": None, "size_divisor": 64},
        {"min_size": 300, "max_size": None, "batching": "pad", "channel_order": "rgb", "pixel_range": 1},
    ],
)
def test_batches_are_those_of_transform(photographs, overrides, kind):
    """The largest difference on 40 photographs is 4.6e-5 gray values of 255."""
    config = FCOSConfig(image_std=(1.0, 2.0, 3.0), image_mean=(0.0, 0.0, 0.0), **overrides)
    transform = Transform(config).eval()
    photos = [photo if kind == np.uint8 else np.float32(photo) / 255 for photo in photographs]
    seen = [transform(torch.from_numpy(photo.copy()).permute(2, 0, 1)) for photo in photos]
    sizes = [detection_size(photo.shape[:2], config) for photo in photos]
    assert sizes == [tuple(image.shape[1:]) for image in seen]
    assert batches(sizes, config) == transform.groups(seen)
    for indices in batches(sizes, config):
        expected = transform.batch([seen[i] for i in indices])
        found = batch([photos[i] for i in indices], [sizes[i] for i in indices], config.size_divisor)
        assert found.dtype == np.float32
        normalized = transform._normalize(torch.from_numpy(found))  # as the graph does it
        torch.testing.assert_close(normalized, expected.tensor, atol=5e-7 * config.pixel_range, rtol=0)
