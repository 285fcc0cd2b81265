"""Groups of near-duplicates, against a search over all pairs."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from fcos_fast.quality import duplicates
from fcos_fast.quality.duplicates import MAX_DISTANCE, count_bits, near_duplicates
from fcos_fast.quality.images import scan
from tests.quality.conftest import encode

imagehash = pytest.importorskip("imagehash", reason="perceptual hashes; install fcos_fast[check]")


def by_all_pairs(hashes, same) -> list[int]:
    """The groups by comparing every pair with Python's integers; each is named by its first member."""
    group = list(range(len(hashes)))
    for i in range(len(hashes)):
        for j in range(i):
            if bin(int(hashes[i]) ^ int(hashes[j])).count("1") <= MAX_DISTANCE and same(i, j):
                old, new = max(group[i], group[j]), min(group[i], group[j])
                group = [new if g == old else g for g in group]
    return group


def first_members(labels) -> list[int]:
    return [int(np.flatnonzero(labels == label)[0]) for label in labels]


@pytest.mark.parametrize("at_once", [3, 1 << 13])
def test_groups_are_those_of_all_pairs(at_once, monkeypatch):
    monkeypatch.setattr(duplicates, "_AT_ONCE", at_once)
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 1 << 63, 40, dtype=np.uint64)
    flipped = [hashes]
    for bits in range(9):  # copies of the first ones with 0 to 8 other bits
        masks = [sum(1 << int(b) for b in rng.choice(64, bits, replace=False)) for _ in range(20)]
        flipped.append(hashes[:20] ^ np.array(masks, dtype=np.uint64))
    spread = sum(1 << bit for bit in (5, 16, 26, 37, 48, 58))  # no band but one is equal
    hashes = np.concatenate([*flipped, hashes[20:21] ^ np.uint64(spread)])
    thumbnails = rng.integers(0, 255, (40, 4, 4, 3), dtype=np.uint8)
    owner = np.concatenate([np.arange(40), *[np.arange(20)] * 9, [20]])
    owner[45:50] = np.arange(30, 35)  # equal hashes, other images
    found = near_duplicates(hashes, thumbnails[owner])
    assert first_members(found) == by_all_pairs(hashes, lambda i, j: owner[i] == owner[j])


def test_few_pairs_are_compared(monkeypatch):
    compared = []
    monkeypatch.setattr(duplicates, "count_bits", lambda x: compared.append(len(x)) or count_bits(x))
    rng = np.random.default_rng(0)
    count = 20_000
    hashes = rng.integers(0, 1 << 63, count, dtype=np.uint64)
    hashes[-100:] = hashes[:100] ^ np.uint64(0b111)
    found = near_duplicates(hashes, np.broadcast_to(np.arange(12, dtype=np.uint8), (count, 12)))
    assert len(np.unique(found)) == count - 100
    assert (found[-100:] == found[:100]).all()
    assert sum(compared) < 0.03 * count**2 / 2


def test_frames_of_one_scene_are_not_compared_in_pairs(monkeypatch):
    compared = []
    monkeypatch.setattr(duplicates, "count_bits", lambda x: compared.append(len(x)) or count_bits(x))
    rng = np.random.default_rng(0)
    count = 5000
    bits = np.uint64(1) << rng.integers(
        64, size=(3, count), dtype=np.uint64
    )  # each frame has up to 3 of its own
    hashes = rng.integers(1 << 63, dtype=np.uint64) ^ bits[0] ^ bits[1] ^ bits[2]
    found = near_duplicates(hashes, np.broadcast_to(np.arange(12, dtype=np.uint8), (count, 12)))
    assert len(np.unique(found)) == 1
    assert sum(compared) < 50 * count


def test_bits_are_counted_without_numpy_2(monkeypatch):
    values = np.random.default_rng(0).integers(0, 1 << 63, 100, dtype=np.uint64)
    expected = [bin(int(value)).count("1") for value in values]
    assert count_bits(values).tolist() == expected
    monkeypatch.delattr(np, "bitwise_count")
    assert count_bits(values).tolist() == expected


def test_copies_are_found_and_others_are_not(photos, tmp_path):
    originals = [Image.open(io.BytesIO(photo.data)) for photo in photos(40)]
    first = originals[0]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    copies = {
        "turned": encode(first.transpose(Image.Transpose.ROTATE_90), exif=exif),
        "compressed": encode(first, quality=30),
        "smaller": encode(first.resize((80, 60)), quality=80),
        "larger": encode(first.resize((400, 300)), "PNG"),
        "brighter": encode(ImageEnhance.Brightness(first).enhance(1.15), quality=90),
        "trimmed": encode(first.crop((1, 1, 159, 119)), quality=90),
    }
    for i, image in enumerate(originals):
        (tmp_path / f"{i:03d}").write_bytes(encode(image, quality=92))
    for name, data in copies.items():
        (tmp_path / name).write_bytes(data)
    scanned = {path.name: scan(path, 10**9) for path in sorted(tmp_path.iterdir())}
    hashes = np.array([found.hash for found in scanned.values()], dtype=np.uint64)
    labels = near_duplicates(hashes, np.stack([found.thumbnail for found in scanned.values()]))
    group = {name for name, label in zip(scanned, labels, strict=True) if label == labels[0]}
    assert group == {"000", *copies}
    assert len(np.unique(labels)) == len(originals)


def test_the_hash_is_that_of_imagehash(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    (tmp_path / "a.png").write_bytes(encode(pixels, "PNG"))
    expected = int(str(imagehash.phash(Image.fromarray(pixels))), 16)
    assert scan(tmp_path / "a.png", 10**9).hash == expected
