"""Test-time augmentation: boxes come back from every view, and every object once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fcos_fast.inference import Predictor, RawDetections
from tests.inference.engines import ColorEngine, canvas

OBJECTS = [("green", (3, 40, 33, 60)), ("red", (10, 20, 30, 39)), ("red", (80, 5, 95, 50))]


class LeftEye(ColorEngine):
    """Finds objects in the left half of an image only."""

    def detect(self, images):
        found = super().detect(images)
        return [
            RawDetections(*(values[d.boxes[:, 2] <= image.shape[1] / 2] for values in d))
            for d, image in zip(found, images, strict=True)
        ]


@pytest.mark.parametrize("engine", [ColorEngine, LeftEye])
def test_every_object_is_found_once(engine):
    found = Predictor(engine()).predict(canvas(64, 101, *OBJECTS), 0.0, augment=True)
    assert sorted((d.name, d.box) for d in found) == OBJECTS


def test_scales_are_used_and_boxes_come_back(monkeypatch):
    seen = []

    class Scalable(ColorEngine):
        def __init__(self, factor=1.0):
            super().__init__()
            self.factor = factor

        def scaled(self, factor):
            return Scalable(factor)

        def detect(self, images):
            seen.append(self.factor)
            return super().detect(images)

    found = Predictor(Scalable()).predict(canvas(64, 101, *OBJECTS), 0.0, augment=[0.5, 1, 2])
    assert sorted((d.name, d.box) for d in found) == OBJECTS
    assert seen == [0.5, 0.5, 1.0, 1.0, 2.0, 2.0]


def test_a_scaled_detector_sees_a_larger_image_with_the_same_weights(detector, checkpoint):
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    engine = detector.engine
    large = engine.scaled(1.5)
    sizes = []

    def record(module, inputs):
        sizes.append(tuple(inputs[0].shape[-2:]))

    handle = engine.model.backbone.register_forward_pre_hook(record)
    before = engine.detect([image])[0]
    (found,) = large.detect([image])
    after = engine.detect([image])[0]
    handle.remove()
    assert sizes == [(64, 96), (96, 160), (64, 96)]  # 96x144, padded to multiples of 32
    assert all(np.array_equal(x, y) for x, y in zip(before, after, strict=True))
    assert {id(p) for p in large.model.parameters()} == {id(p) for p in engine.model.parameters()}
    pixels = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
    enlarged = torch.nn.functional.interpolate(pixels, scale_factor=1.5, mode="bilinear")[0]
    (expected,) = engine.detect([enlarged.permute(1, 2, 0).numpy()])
    assert len(found.scores) == len(expected.scores) > 0
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-4)
    np.testing.assert_allclose(found.boxes[:5], expected.boxes[:5] / 1.5, atol=0.05)


def test_scales_that_cannot_be_used():
    image = canvas(64, 64)
    with pytest.raises(
        ValueError, match=r"augment: ColorEngine runs the model at one size, not at scale 0.5; use"
    ):
        Predictor(ColorEngine()).stream(image, augment=[1, 0.5])
    for scales in ([], [0.0], [11]):
        with pytest.raises(ValueError, match=r"augment=\[.*\]; expected scales from 0.1 to 10"):
            Predictor(ColorEngine()).stream(image, augment=scales)


def test_tiles_are_augmented_too():
    found = Predictor(LeftEye()).predict(canvas(64, 400, *OBJECTS), 0.0, augment=True, tile=64, overlap=0.5)
    assert sorted((d.name, d.box) for d in found) == OBJECTS
