"""Groups of images that are the same or nearly so, among hundreds of thousands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from fcos_fast.models.optional import import_optional

from .images import ScannedImage

MAX_DISTANCE = 6
"""Perceptual hashes of near-duplicates differ in at most so many of their 64 bits."""

MIN_CORRELATION = 0.95
"""Smallest correlation of the thumbnails of near-duplicates."""

BLANK = 2.0
"""Largest standard deviation of the thumbnail of a blank image, of 255."""

_AT_ONCE = 1 << 13  # thumbnails that are compared at once


def duplicate_groups(scanned: Sequence[ScannedImage]) -> np.ndarray:
    """(I,) int64: identical and nearly identical images have the same number. Damaged and blank ones are alone."""
    thumbnails = {
        i: found.thumbnail
        for i, found in enumerate(scanned)
        if found.thumbnail is not None and not is_blank(found.thumbnail)
    }
    groups = np.arange(len(scanned))
    if thumbnails:
        hashes = np.array([scanned[i].hash for i in thumbnails], dtype=np.uint64)
        groups[list(thumbnails)] = len(scanned) + near_duplicates(hashes, np.stack(list(thumbnails.values())))
    return groups


def is_blank(thumbnail: np.ndarray) -> bool:
    """Whether nothing can be seen on the image of a thumbnail (H, W, 3)."""
    return float(thumbnail.reshape(-1, 3).std(axis=0).max()) < BLANK


def near_duplicates(hashes: np.ndarray, thumbnails: np.ndarray) -> np.ndarray:
    """The groups of near-duplicates: images that are connected by pairs whose hashes and thumbnails are similar.

    The bits of a hash are divided into ``MAX_DISTANCE + 1`` bands. The hashes of a pair agree in at least one of them,
    so only hashes with an equal band are compared: a few thousandths of all pairs.

    Args:
        hashes: (N,) uint64 perceptual hashes.
        thumbnails: (N, ...) uint8.

    Returns:
        (N,) int64, the number of each image's group.
    """
    sparse = import_optional("scipy.sparse", "finding duplicate images needs", "check")
    graph = import_optional("scipy.sparse.csgraph", "finding duplicate images needs", "check")
    labels = np.arange(len(hashes))
    ends = np.linspace(0, 64, MAX_DISTANCE + 2).round().astype(int).tolist()
    for low, high in pairwise(ends):
        edges = [np.zeros((0, 2), np.int64)]
        for members in _members_of_bands(hashes >> np.uint64(low) & np.uint64((1 << (high - low)) - 1)):
            if (labels[members] != labels[members[0]]).any():
                edges += _edges(members, hashes, thumbnails)
        first, second = labels[np.concatenate(edges)].T
        matrix = sparse.coo_matrix((np.ones(len(first)), (first, second)), shape=(len(labels), len(labels)))
        labels = graph.connected_components(matrix, directed=False)[1][labels]
    return labels


def _members_of_bands(band: np.ndarray) -> list[np.ndarray]:
    """The indices of the images that share each value of a band, if they are several."""
    order = np.argsort(band, kind="stable")
    parts = np.split(order, np.flatnonzero(np.diff(band[order])) + 1)
    return [members for members in parts if len(members) > 1]


def _edges(members: np.ndarray, hashes: np.ndarray, thumbnails: np.ndarray) -> Iterator[np.ndarray]:
    """(E, 2): pairs of near-duplicates that connect all near-duplicates among ``members``.

    An image that is reached from another leaves the rest, with which the next ones are compared: a scene of K frames
    that resemble the first one costs K comparisons, not K squared.
    """
    rest, rest_hashes = members, hashes[members]
    reached: list[int] = []
    while len(rest):
        if not reached:
            reached, rest, rest_hashes = [int(rest[0])], rest[1:], rest_hashes[1:]
        image = reached.pop()
        near = np.flatnonzero(count_bits(rest_hashes ^ hashes[image]) <= MAX_DISTANCE)
        if len(near):
            near = near[_similar(thumbnails, image, rest[near])]
            found = rest[near]
            yield np.stack((np.full_like(found, image), found), axis=1)
            reached += found.tolist()
            rest, rest_hashes = np.delete(rest, near), np.delete(rest_hashes, near)


def count_bits(values: np.ndarray) -> np.ndarray:
    """The number of ones in each uint64."""
    if hasattr(np, "bitwise_count"):  # NumPy 2
        return np.bitwise_count(values)
    return np.unpackbits(values[:, None].view(np.uint8), axis=1).sum(axis=1)


def _similar(thumbnails: np.ndarray, image: int, others: np.ndarray) -> np.ndarray:
    """(N,) bool: whether the thumbnails of ``others`` (N,) correlate with that of an image; brightness and contrast do
    not matter."""
    wanted = _standardized(thumbnails[image : image + 1])[0]
    parts = [others[i : i + _AT_ONCE] for i in range(0, len(others), _AT_ONCE)]
    return np.concatenate([_standardized(thumbnails[part]) @ wanted for part in parts]) >= MIN_CORRELATION


def _standardized(thumbnails: np.ndarray) -> np.ndarray:
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat -= flat.mean(axis=1, keepdims=True)
    return flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-6)
