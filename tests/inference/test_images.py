"""Images of every kind become the same array."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from fcos_fast.data import DataError
from fcos_fast.inference.images import as_array
from tests.child import assert_runs

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
GRAY = PIXELS[..., :1]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_exif_orientation_of_pillow_images_files_and_bytes(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / f"a{suffix}"
    Image.fromarray(PIXELS).save(file, exif=exif)
    with Image.open(file) as photo:
        found = as_array(photo)
        assert found.shape == ((20, 30, 3) if orientation < 5 else (30, 20, 3))
        assert np.array_equal(found, as_array(file))
        assert np.array_equal(found, as_array(file.read_bytes()))
        assert np.array_equal(as_array(photo), found)  # and it did not change


@pytest.mark.parametrize("mode", ["L", "I;16", "I", "F", "1", "P", "RGBA", "CMYK"])
def test_pillow_images_of_every_mode(mode):
    gray = np.arange(200, dtype=np.uint8).reshape(10, 20)
    images = {"I;16": gray.astype(np.uint16) * 257, "I": gray.astype(np.int32), "F": gray / np.float32(255)}
    photo = Image.fromarray(images[mode]) if mode in images else Image.fromarray(gray).convert(mode)
    expected = gray if mode in (*images, "L") else np.asarray(photo.convert("RGB"))[..., 0]
    assert photo.mode == mode
    assert np.array_equal(as_array(photo)[..., 0], expected)


@pytest.mark.parametrize(
    ("image", "expected"),
    {
        "RGB": (PIXELS, PIXELS),
        "gray": (GRAY[..., 0], GRAY.repeat(3, axis=2)),
        "one channel": (GRAY, GRAY.repeat(3, axis=2)),
        "RGBA": (np.dstack((PIXELS, GRAY)), PIXELS),
        "mirrored view": (PIXELS[:, ::-1], PIXELS[:, ::-1]),
        "float64": (PIXELS / 255, np.float32(PIXELS / 255)),
        "float16": (np.float16(PIXELS / 255), np.float16(PIXELS / 255).astype(np.float32)),
        "tensor": (torch.tensor(PIXELS).permute(2, 0, 1), PIXELS),
        "gray tensor": (torch.tensor(PIXELS[..., 0]), GRAY.repeat(3, axis=2)),
        "one channel tensor": (torch.tensor(PIXELS[..., 0])[None], GRAY.repeat(3, axis=2)),
        "float tensor": (torch.tensor(PIXELS).permute(2, 0, 1) / 255, np.float32(PIXELS) / 255),
        "bfloat16 tensor": (torch.ones(3, 2, 5, dtype=torch.bfloat16), np.ones((2, 5, 3), np.float32)),
        "with gradient": (torch.ones(3, 2, 5, requires_grad=True), np.ones((2, 5, 3), np.float32)),
    }.values(),
)
def test_arrays_and_tensors(image, expected):
    found = as_array(image)
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)
    found[...] = 1  # it is a copy: a camera may write the next image into the same memory
    assert not np.array_equal(np.asarray(PIXELS), found)


@pytest.mark.parametrize(
    ("image", "error", "message"),
    [
        (7.5, TypeError, "got a float; expected a file name, bytes of a file"),
        (None, TypeError, "got a NoneType; expected"),
        (
            np.zeros((3, 8, 9), np.uint8),
            ValueError,
            r"\(3, 8, 9\) and dtype uint8; expected one image \(H, W, 3\)",
        ),
        (np.zeros((2, 8, 9, 3), np.uint8), ValueError, r"an array of shape \(2, 8, 9, 3\)"),
        (np.zeros((0, 9, 3), np.uint8), ValueError, "not empty"),
        (
            torch.zeros(8, 9, 3),
            ValueError,
            r"a tensor of shape \(8, 9, 3\) and dtype float32; expected one image \(3,",
        ),
        (np.zeros((8, 9, 3), np.int64), TypeError, "dtype int64; expected uint8, or floating point"),
        (np.zeros((8, 9, 3), np.uint16), TypeError, "dtype uint16; expected uint8"),
        (np.zeros((8, 9, 3), bool), TypeError, "dtype bool; expected uint8"),
        (np.array([["a", "b"]]), TypeError, "expected uint8"),
        (PIXELS.astype(np.float32), ValueError, "values from 0 to 255; floating-point images are in"),
        (PIXELS / 64 - 2, ValueError, "values from -2 to 1.98.*do not normalize"),
        (np.full((4, 4, 3), np.nan), ValueError, "values from nan"),
        (b"", DataError, "0 bytes: is an empty file"),
        (b"not a jpeg", DataError, "10 bytes: is not an image"),
    ],
)
def test_what_is_not_an_image_is_named(image, error, message):
    with pytest.raises(error, match=message):
        as_array(image)


def test_pixel_limit_holds_for_bytes():
    content = io.BytesIO()
    Image.fromarray(PIXELS).save(content, "PNG")
    assert as_array(content.getvalue(), 600).shape == (20, 30, 3)
    with pytest.raises(DataError, match=r"\d+ bytes: has 30x20 = 600 pixels, more than 599"):
        as_array(content.getvalue(), 599)


def test_truncated_jpeg_of_bytes_is_read():
    content = io.BytesIO()
    Image.fromarray(PIXELS).save(content, "JPEG")
    assert as_array(content.getvalue()[:-50]).shape == (20, 30, 3)


def test_nothing_but_a_checkpoint_needs_torch(file):
    assert_runs(
        f"""
        import sys
        sys.modules["torch"] = None  # importing it fails
        sys.path.insert(0, ".")
        import fcos_fast, fcos_fast.inference
        from fcos_fast.inference import Detections, Engine, Predictor, RawDetections, load
        from tests.inference.engines import ColorEngine
        found = Predictor(ColorEngine()).predict({str(file)!r})
        assert found.image.shape == (64, 96, 3)
        found.draw(), found.to_dict()
        import fcos_fast.cli.detect_run
        try:
            load("x.pt")
        except ModuleNotFoundError as error:
            assert "torch" in str(error)
        """
    )
