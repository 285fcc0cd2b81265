"""The Python interface: load a checkpoint, predict an image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fcos_fast.data import read_image
from fcos_fast.engine.evaluate import detect_batches


def test_boxes_scores_and_names_of_one_image(detector, file):
    found = detector.predict(file, score_threshold=0.05)
    assert len(found) == len(found.boxes) == len(found.scores) == len(found.labels) == len(found.names) > 0
    assert found.boxes.shape == (len(found), 4)
    assert (found.scores >= 0.05).all()
    assert (np.diff(found.scores) <= 0).all()
    assert found.names == tuple(detector.categories.names[label] for label in found.labels)
    assert found.to_dict()[0]["class"] == found.names[0]
    assert found.to_dict()[0]["box"] == pytest.approx(found.boxes[0].tolist(), abs=0.006)
    assert found.draw().size == (96, 64)


def test_every_kind_of_image_is_read_the_same(detector, file):
    photo = Image.open(file)
    tensor = torch.from_numpy(np.array(photo)).permute(2, 0, 1)
    kinds = [str(file), file, photo, np.array(photo), tensor, tensor.float() / 255]
    results = detector.predict(kinds, score_threshold=0.05)
    assert len(results) == len(kinds)
    for found in results[1:]:
        # decoders may differ in the last bit of a pixel
        np.testing.assert_allclose(found.scores[:3], results[0].scores[:3], rtol=0, atol=0.02)


def test_a_file_is_the_same_input_as_in_evaluation(detector, file):
    """Bit for bit: the same pixels in the same memory format."""
    found = detector.predict(file, 0.0)
    (expected,) = next(detect_batches(detector.engine.model, [[read_image(file)]]))
    assert len(found) == 100
    assert np.array_equal(found.boxes, expected["boxes"])
    assert np.array_equal(found.scores, expected["scores"])
    assert np.array_equal(found.labels, expected["labels"])


def test_no_images(detector):
    assert detector.predict([]) == []


def test_inputs_that_are_not_images(detector, tmp_path):
    with pytest.raises(TypeError, match="got a float"):
        detector.predict(7.5)
    (tmp_path / "broken.jpg").write_bytes(b"not a jpeg")
    with pytest.raises(ValueError, match=r"broken\.jpg"):
        detector.predict(tmp_path / "broken.jpg")
