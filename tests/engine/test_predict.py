"""The Python interface: load a checkpoint, predict an image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from fcos_fast.engine.checkpoint import load_checkpoint, model_from_checkpoint
from fcos_fast.engine.evaluate import detect_batches
from fcos_fast.engine.predict import Predictor, as_image, load
from fcos_fast.precision import choose_precision


@pytest.fixture(scope="module")
def detector(whole_run):
    return load(whole_run[1].folder / "best.pt", device="cpu", precision="float32")


@pytest.fixture
def file(voc_root):
    return sorted((voc_root / "JPEGImages").iterdir())[0]


def test_boxes_scores_and_names_of_one_image(detector, file):
    found = detector.predict(file, score_threshold=0.05)
    assert len(found) == len(found.boxes) == len(found.scores) == len(found.labels) == len(found.names) > 0
    assert found.boxes.shape == (len(found), 4)
    assert (found.scores >= 0.05).all()
    assert (found.scores.diff() <= 0).all()
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
        torch.testing.assert_close(found.scores[:3], results[0].scores[:3], rtol=0, atol=0.02)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_exif_orientation_of_pillow_images_and_files(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"a{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, exif=exif)
    with Image.open(file) as photo:
        found = as_image(photo)
        assert found.shape == ((3, 20, 30) if orientation < 5 else (3, 30, 20))
        assert torch.equal(found, as_image(file))
        assert torch.equal(as_image(photo), found)  # and it did not change


@pytest.mark.parametrize("mode", ["L", "I;16", "I", "F", "1", "P", "RGBA", "CMYK"])
def test_pillow_images_of_every_mode(tmp_path, mode):
    gray = np.arange(200, dtype=np.uint8).reshape(10, 20)
    images = {"I;16": gray.astype(np.uint16) * 257, "I": gray.astype(np.int32), "F": gray / np.float32(255)}
    photo = Image.fromarray(images[mode]) if mode in images else Image.fromarray(gray).convert(mode)
    expected = gray if mode in (*images, "L") else np.asarray(photo.convert("RGB"))[..., 0]
    assert photo.mode == mode
    assert np.array_equal(as_image(photo)[0], expected)


def test_saved_average_detects_what_was_evaluated(whole_run):
    """The model in ``last.pt`` has the detections of the last evaluation."""
    _, outcome = whole_run
    images = [outcome.val_set[i][0] for i in range(4)]
    model, _ = model_from_checkpoint(load_checkpoint(outcome.folder / "last.pt"))
    dtype, _ = choose_precision("auto", torch.device("cpu"))  # as in training
    (found,) = detect_batches(model.to(memory_format=torch.channels_last), [images], dtype)
    for detections, expected in zip(found, outcome.detections, strict=True):
        assert torch.equal(detections["boxes"], expected["boxes"])
        assert torch.equal(detections["scores"], expected["scores"])


def test_a_loaded_model_is_optimized_and_detects_the_same(whole_run, detector):
    _, outcome = whole_run
    assert detector.model.inference_dtype == torch.float32
    images = [outcome.val_set[i][0] for i in range(4)]
    plain = Predictor(
        model_from_checkpoint(load_checkpoint(outcome.folder / "best.pt"))[0], detector.categories
    )
    for found, expected in zip(detector.predict(images, 0.0), plain.predict(images, 0.0), strict=True):
        assert len(found) == len(expected) > 0
        torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-5)
        torch.testing.assert_close(found.boxes[:5], expected.boxes[:5], rtol=0, atol=1e-3)


def test_no_images(detector):
    assert detector.predict([]) == []


def test_inputs_that_are_not_images(detector, tmp_path):
    with pytest.raises(ValueError, match=r"shape \(8, 8\) and dtype uint8; expected uint8 \(H, W, 3\)"):
        detector.predict(np.zeros((8, 8), np.uint8))
    with pytest.raises(TypeError, match="got a int"):
        detector.predict(7)
    (tmp_path / "broken.jpg").write_bytes(b"not a jpeg")
    with pytest.raises(ValueError, match=r"broken\.jpg"):
        detector.predict(tmp_path / "broken.jpg")
