"""Unusual image files: rotated, gray, huge, truncated, damaged, and not regular files."""

from __future__ import annotations

import os
import socket
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fcos_fast.data import DataError, Report, jpeg, load_dataset, load_voc, read_image

RAMP = np.linspace(0, 255, 20 * 30, dtype=np.uint8).reshape(20, 30)
NOISE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
CAT = ("cat", (1, 2, 15, 18))

TURNED = {1: RAMP, 2: RAMP[:, ::-1], 3: RAMP[::-1, ::-1], 4: RAMP[::-1]}
TURNED |= {5: RAMP.T, 6: RAMP.T[:, ::-1], 7: RAMP.T[::-1, ::-1], 8: RAMP.T[::-1]}


@pytest.mark.parametrize("orientation", TURNED)
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_rotated_tiff_has_its_upright_size(make_voc, orientation, compression):
    root = make_voc({"a": [CAT]})
    (root / "JPEGImages" / "a.jpg").unlink()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RAMP).save(root / "JPEGImages" / "a.tif", exif=exif, compression=compression)
    data = load_voc(root)
    assert data.records[0].size == TURNED[orientation].shape[::-1]
    assert np.array_equal(data[0][0][0], TURNED[orientation])


@pytest.mark.parametrize(
    ("gray", "expected"),
    [
        (RAMP.astype(np.int32), RAMP),
        (RAMP.astype(np.int32) * 257, RAMP),
        (RAMP.astype(np.uint16) * 257, RAMP),
        (RAMP.astype(np.float32) / 255, RAMP),
        (RAMP.astype(np.float32), RAMP),
        (RAMP.astype(np.float32) * 257, RAMP),
        (np.zeros((4, 5), np.float32), np.zeros((4, 5))),
        (np.zeros((4, 5), np.int32), np.zeros((4, 5))),
    ],
    ids=["int32", "int32 of 16 bits", "uint16", "float to 1", "float to 255", "float to 65535", "0.0", "0"],
)
def test_gray_tiff_is_scaled_by_its_values(tmp_path, gray, expected):
    Image.fromarray(gray).save(tmp_path / "a.tif")
    ours = read_image(tmp_path / "a.tif")
    assert ours.dtype == torch.uint8
    for channel in ours:
        assert np.array_equal(channel, expected)


@pytest.mark.parametrize(
    "gray",
    [
        np.array([[-1, 5]], np.int32),
        np.array([[0, 70000]], np.int32),
        np.array([[-0.5, 0.5]], np.float32),
        np.array([[0.5, 1.5]], np.float32),  # overshoot of 0 to 1, or almost black in 0 to 255
        np.array([[np.nan, 0.5]], np.float32),
        np.array([[np.inf, 0.5]], np.float32),
        np.array([[0, 1e9]], np.float32),
    ],
    ids=lambda gray: str(gray[0].tolist()),
)
def test_gray_tiff_of_another_range_is_rejected(tmp_path, gray):
    Image.fromarray(gray).save(tmp_path / "a.tif")
    with pytest.raises(
        DataError, match=r"a\.tif: cannot be read \(its gray values range from .*; expected 0 to"
    ):
        read_image(tmp_path / "a.tif")


def cut(file: Path, missing: int, progressive: bool = False) -> None:
    """Write a JPEG of NOISE without its last bytes."""
    Image.fromarray(NOISE).save(file, progressive=progressive)
    file.write_bytes(file.read_bytes()[:-missing])


@pytest.mark.parametrize("slow", [-1, 1000])
def test_truncated_files_are_counted_in_order_on_any_disk(tmp_path, monkeypatch, slow):
    monkeypatch.setattr(jpeg, "SLOW", slow)
    files = [tmp_path / f"{i:03}.jpg" for i in range(200)]
    for file in files:
        file.write_bytes(b"\xff\xd8\xff\xff\xd9")
    for i in (3, 70, 199):
        files[i].write_bytes(b"\xff\xd8\xff")
    report = Report("x")
    jpeg.count_truncated(files, report)
    examples = report.examples["truncated JPEG, the missing part is gray"]
    assert examples == [f"{files[i]}: save it again" for i in (3, 70, 199)]


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("missing", [1, 2, 3, 50, 400])
def test_truncated_jpeg_is_read_and_counted(make_voc, missing, progressive):
    root = make_voc({"a": [CAT], "b": [CAT]})
    cut(root / "JPEGImages" / "a.jpg", missing, progressive)
    data = load_voc(root)
    assert data.report.faults == {"truncated JPEG, the missing part is gray": 1}
    assert "a.jpg" in str(data.report)
    image = data[0][0]
    assert image.shape == (3, 30, 40)
    Image.fromarray(NOISE).save(root / "whole.jpg", progressive=progressive)
    if not progressive:
        assert torch.equal(image[:, :8, :16], read_image(root / "whole.jpg")[:, :8, :16])
    with pytest.raises(DataError, match=r"a\.jpg: truncated JPEG"):
        load_voc(root, strict=True)


def test_the_end_of_a_thumbnail_is_not_the_end_of_the_image(make_voc):
    root = make_voc({"a": [CAT]})
    file = root / "JPEGImages" / "a.jpg"
    Image.fromarray(NOISE).save(root / "thumbnail.jpg")
    exif = Image.Exif()
    exif[0x9286] = (root / "thumbnail.jpg").read_bytes()
    Image.fromarray(NOISE).save(file, exif=exif)
    assert file.read_bytes().count(b"\xff\xd9") == 2
    assert load_voc(root).report.faults == {}
    file.write_bytes(file.read_bytes()[:-9])
    assert list(load_voc(root).report.faults.values()) == [1]


@pytest.mark.parametrize(
    "appended", [b"\0" * 100, b"\n", b"a video \xff\xda and more", b"\xff", b"\xff\xd8\xff"]
)
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_with_appended_data_is_complete(make_voc, appended, progressive):
    root = make_voc({"a": [CAT]})
    file = root / "JPEGImages" / "a.jpg"
    Image.fromarray(NOISE).save(file, progressive=progressive)
    whole = read_image(file)
    file.write_bytes(file.read_bytes() + appended)
    data = load_voc(root)
    assert data.report.faults == {}
    assert torch.equal(data[0][0], whole)


def png(width: int, height: int, pixels: bytes = b"\0") -> bytes:
    """A gray PNG whose header claims this size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    compressed = zlib.compress(pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", compressed) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "height", "message"),
    [
        (178956970, 1, r"cannot be read \("),  # Pillow raises MemoryError
        (1, 200, r"cannot be read \("),
        (178956971, 1, "more than 178956970; raise max_pixels"),
        (1, 178956971, "more than 178956970; raise max_pixels"),
        (2**31 - 1, 2**31 - 1, "more than 178956970; raise max_pixels"),
        (0, 5, "is not an image"),
    ],
)
def test_png_whose_header_claims_too_many_pixels(tmp_path, width, height, message):
    file = tmp_path / "a.png"
    file.write_bytes(png(width, height))
    with pytest.raises(DataError, match=rf"a\.png: .*{message}") as error:
        read_image(file)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tif"])
def test_max_pixels(make_voc, monkeypatch, suffix):
    """Pillow warns above half of its own limit and raises above it; only max_pixels applies here."""
    root = make_voc({"a": [CAT]})
    (root / "JPEGImages" / "a.jpg").unlink()
    file = root / "JPEGImages" / f"a{suffix}"
    Image.new("RGB", (40, 30)).save(file)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # of 1200
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_voc(root)[0][0].shape == (3, 30, 40)
        assert load_voc(root, max_pixels=1200)[0][0].shape == (3, 30, 40)
        assert read_image(file, 1200).shape == (3, 30, 40)
    with pytest.raises(DataError, match=r"a\.\w+: has 40x30 = 1200 pixels, more than 1199; raise max_pixels"):
        load_voc(root, max_pixels=1199)
    with pytest.raises(DataError, match=r"a\.\w+: has 40x30 = 1200 pixels, more than 1199; raise max_pixels"):
        read_image(file, 1199)
    assert Image.MAX_IMAGE_PIXELS == 500


def test_pillows_warning_does_not_reach_the_user(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(png(1, 100_000_000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match="more than 1000"):
            read_image(file, 1000)
        with pytest.raises(DataError, match="cannot be read"):
            read_image(file)


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's address has at most 107 characters
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(here)


def make_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def make_broken_link(path: Path) -> None:
    path.symlink_to("nowhere.jpg")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (make_fifo, "is a FIFO; expected a regular file"),
        (make_socket, "is a socket; expected a regular file"),
        (make_device, "is a device; expected a regular file"),
        (make_broken_link, "cannot be read"),
    ],
)
def test_fifos_sockets_and_devices_do_not_block(make_voc, make, message):
    root = make_voc({"a": [CAT]})
    file = root / "JPEGImages" / "a.jpg"
    file.unlink()
    make(file)
    for call in (load_voc, load_dataset, lambda _: read_image(file)):
        with pytest.raises(DataError, match=rf"a\.jpg: {message}"):
            call(root)


@pytest.mark.timeout(20)
def test_fifo_instead_of_a_text_file(make_voc):
    root = make_voc({"a": [CAT]}, train=["a"])
    for file, split in (("Annotations/a.xml", None), ("ImageSets/Main/train.txt", "train")):
        saved = (root / file).read_bytes()
        (root / file).unlink()
        make_fifo(root / file)
        with pytest.raises(DataError, match=rf"{file}: is a FIFO"):
            load_voc(root, split)
        (root / file).unlink()
        (root / file).write_bytes(saved)


def test_folder_named_like_an_image_is_not_an_image(make_voc):
    root = make_voc({"a": [CAT]})
    (root / "JPEGImages" / "b.jpg").mkdir()
    assert len(load_voc(root)) == 1


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".tif"])
def test_damaged_files_raise_no_other_error(tmp_path, suffix):
    """Every truncated file and many damaged ones are read, or raise a DataError of one line."""
    file = tmp_path / f"a{suffix}"
    Image.fromarray(NOISE[:16, :16]).save(file)
    whole = file.read_bytes()
    rng = np.random.default_rng(1)
    damaged = [whole[:n] for n in range(0, len(whole), max(1, len(whole) // 60))]
    for _ in range(60):
        flipped = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 200), 3):
            flipped[place] = rng.integers(256)
        damaged.append(bytes(flipped))
    for content in damaged:
        file.write_bytes(content)
        outcome = outcome_of(file)
        assert outcome == "read" or (outcome.startswith(str(file)) and "\n" not in outcome)


def outcome_of(file: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about damaged metadata
        try:
            read_image(file, 10_000_000)
        except DataError as error:
            return str(error)
    return "read"
