"""Tiles: every object once, wherever the seams are."""

from __future__ import annotations

import numpy as np
import pytest

from fcos_fast.inference import Predictor, RawDetections
from fcos_fast.inference.tiles import TiledEngine
from tests.inference.engines import ColorEngine, canvas

SIZE = (500, 700)


class Nearsighted(ColorEngine):
    """Finds nothing larger than ``largest`` in an image of the tile's size, and nothing smaller in a larger one."""

    def __init__(self, tile: int, largest: int) -> None:
        super().__init__()
        self.tile, self.largest = tile, largest

    def detect(self, images):
        found = super().detect(images)
        return [self._seen(d, image) for d, image in zip(found, images, strict=True)]

    def _seen(self, found: RawDetections, image: np.ndarray) -> RawDetections:
        side = (found.boxes[:, 2:] - found.boxes[:, :2]).max(axis=1, initial=0)
        keep = side <= self.largest if max(image.shape) <= self.tile else side > self.largest
        return RawDetections(*(values[keep] for values in found))


def objects_everywhere(seed: int, side: int) -> list[tuple[str, tuple[int, int, int, int]]]:
    """Boxes in random places that touch neither each other nor the border."""
    rng = np.random.default_rng(seed)
    taken = np.zeros(SIZE, bool)
    boxes = []
    for _ in range(400):
        width, height = rng.integers(8, side + 1, 2)
        x, y = rng.integers(1, SIZE[1] - width), rng.integers(1, SIZE[0] - height)
        around = slice(y - 1, y + height + 1), slice(x - 1, x + width + 1)
        if not taken[around].any():
            taken[around] = True
            boxes.append((("red", "green")[len(boxes) % 2], (x, y, x + width, y + height)))
    return boxes


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("tile", "overlap"), [(128, 0.25), (200, 0.2), (300, 0.5)])
def test_every_object_is_found_once(seed, tile, overlap):
    objects = objects_everywhere(seed, side=int(tile * overlap * 0.75))
    engine = Nearsighted(tile, largest=10_000)  # sees nothing in the whole image
    found = Predictor(engine).predict(canvas(*SIZE, *objects), 0.0, tile=tile, overlap=overlap, batch_size=4)
    assert sorted((d.name, d.box) for d in found) == sorted(objects)
    assert engine.batches[0] == 1
    assert set(engine.batches[1:-1]) == {4}


def test_objects_larger_than_the_overlap_are_found_in_the_whole_image():
    large = (
        "red",
        (60, 100, 450, 400),
    )  # every tile inside it sees red only, every tile at its edge a part of it
    small = [("green", (x, y, x + 20, y + 20)) for x, y in ((10, 10), (100, 250), (190, 60), (600, 410))]
    engine = Nearsighted(128, largest=150)
    found = Predictor(engine).predict(canvas(*SIZE, large, *small), 0.0, tile=128, overlap=0.25)
    assert sorted((d.name, d.box) for d in found) == sorted([large, *small])


def test_detections_are_those_of_the_whole_image_if_it_fits_into_a_tile():
    engine = ColorEngine()
    image = canvas(100, 90, ("red", (20, 30, 60, 70)))
    found = TiledEngine(engine, 128).detect([image])
    assert engine.batches == [1]
    assert np.array_equal(found[0].boxes, [[20, 30, 60, 70]])


@pytest.mark.parametrize("length", [128, 129, 200, 1000, 4321])
def test_tiles_cover_the_image_with_at_least_the_overlap(length):
    starts = TiledEngine(ColorEngine(), 128, overlap=0.25)._starts(length)
    assert starts[0] == 0
    assert starts[-1] == max(0, length - 128)
    steps = np.diff(starts)
    assert (steps > 0).all()
    assert (steps <= 96).all()
    assert len(starts) == max(1, int(np.ceil((length - 128) / 96)) + 1)


def test_options_out_of_range():
    for options, message in (
        ({"tile": 31}, "tile=31; expected the side"),
        ({"tile": 64, "overlap": 1.0}, "overlap=1.0; expected a fraction"),
        ({"tile": 64, "overlap": -0.1}, "overlap=-0.1"),
    ):
        with pytest.raises(ValueError, match=message):
            Predictor(ColorEngine()).stream(canvas(100, 100), **options)


def test_a_detector_finds_the_same_objects_in_tiles_of_a_mosaic(detector):
    """With a network: no box is cut, and the boxes of one tile are those of the tile alone."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (96, 160, 3), dtype=np.uint8)
    found = detector.predict(image, 0.0, tile=64, overlap=0.25, batch_size=3)
    assert len(found) > 0
    assert (found.boxes >= 0).all()
    assert (found.boxes <= (160, 96, 160, 96)).all()
    assert (np.diff(found.scores) <= 0).all()
